from collections import Counter, namedtuple

import pytest

from brainslices.data.splits import (
    SPLITS,
    check_subject_splits,
    draw_validation,
    normalize_split,
    split_subjects,
)
from brainslices.errors import InputError

Record = namedtuple("Record", ("subject", "split", "source"))


def test_names_of_splits_are_normalized():
    names = ("train", "Training", "val", "validation", "valid", "dev", "EVAL", "TEST", "Testing")
    assert [normalize_split(name) for name in names] == (
        ["train"] * 2 + ["validate"] * 5 + ["test"] * 2
    )
    with pytest.raises(InputError, match="`split`.*split='holdout'"):
        normalize_split("holdout")


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0), (0, 0, 1)]
)
def test_every_subject_has_one_split_and_positive_fractions_are_filled(fractions):
    for count in range(1, 40):
        names = [f"s{number}" for number in range(count)]
        split_of = split_subjects(reversed(names), fractions, seed=3)
        assert sorted(split_of) == sorted(names)
        sizes = Counter(split_of.values())
        for split, fraction in zip(SPLITS, fractions, strict=True):
            assert abs(sizes[split] - fraction * count) < 2
            if count >= 3:
                assert (sizes[split] > 0) == (fraction > 0)
        assert split_of == split_subjects(names, fractions, seed=3)


def test_validation_is_a_part_of_the_subjects_of_train():
    names = [f"s{number}" for number in range(18)]
    drawn = draw_validation(reversed(names), (0.8, 0.1, 0.1), seed=3)
    assert len(drawn) == 2
    assert drawn < set(names)
    assert drawn == draw_validation(names, (0.8, 0.1, 0.1), seed=3)
    assert len(draw_validation("ab", (0.98, 0.01, 0.01), 0)) == 1
    assert len(draw_validation("ab", (0.0, 1.0, 0.0), 0)) == 1  # never all
    assert not draw_validation("a", (0.8, 0.1, 0.1), 0)
    assert not draw_validation(names, (0.9, 0, 0.1), 0)


def test_assignment_depends_on_the_seed():
    names = [f"s{number}" for number in range(39)]
    one, other = (split_subjects(names, (0.8, 0.1, 0.1), seed) for seed in (3, 4))
    assert one != other


def test_subject_in_two_splits_is_refused():
    records = [Record("a", "train", "x"), Record("b", "test", "y"), Record("a", "test", "z")]
    check_subject_splits(records[:2])
    with pytest.raises(InputError, match="'a' is in two splits.*'train' by x and in 'test' by z"):
        check_subject_splits(records)
