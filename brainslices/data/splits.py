"""The train, validate and test splits: their names, and which subjects belong to which."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from brainslices.errors import InputError

__all__ = [
    "SPLITS",
    "SPLIT_NAMES",
    "check_subject_splits",
    "draw_validation",
    "normalize_split",
    "split_subjects",
]

SPLITS = ("train", "validate", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validate", "validation", "val", "valid", "dev", "eval"), "validate"),
    **dict.fromkeys(("development", "evaluation", "validating"), "validate"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Lower-case name -> split."""


def normalize_split(name: str) -> str:
    """Return the canonical name of a split.

    Raises:
        InputError: if `name` is not a split.

    Example:
        >>> normalize_split("Validation")
        'validate'
    """
    split = SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={name!r}.")
    return split


def split_subjects(
    subjects: Iterable[str], fractions: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Assign subjects to the splits at random.

    With three subjects or more, every split with a positive fraction receives at least one.

    Args:
        subjects: names; their order and repetitions do not matter.
        fractions: fraction of the subjects for train, validate and test; they sum to 1.
        seed: seed of the assignment.

    Returns:
        Subject -> split.

    Example:
        >>> splits = split_subjects(["a", "b", "c"], (0.8, 0.1, 0.1), seed=0)
        >>> sorted(splits.values())
        ['test', 'train', 'validate']
    """
    names = sorted(set(subjects))
    quota = np.array(fractions) * len(names)
    counts = np.floor(quota + 1e-9).astype(int)
    for split in np.argsort(counts - quota, kind="stable")[: len(names) - counts.sum()]:
        counts[split] += 1
    if len(names) >= 3:
        for split in np.flatnonzero((counts == 0) & (quota > 0)):
            counts[counts.argmax()] -= 1
            counts[split] = 1
    order = np.random.default_rng(seed).permutation(len(names))
    splits = np.repeat(SPLITS, counts)
    return {names[row]: str(split) for row, split in zip(order, splits, strict=True)}


def draw_validation(
    train_subjects: Iterable[str], fractions: tuple[float, float, float], seed: int
) -> set[str]:
    """Draw the subjects of `validate` from those of `train`, at random.

    Args:
        train_subjects: names; their order and repetitions do not matter.
        fractions: as in `split_subjects`; the first two count.
        seed: seed of the draw.

    Returns:
        At least one of two subjects or more, never all; none if the fraction is 0.

    Example:
        >>> len(draw_validation(map(str, range(18)), (0.8, 0.1, 0.1), seed=0))
        2
    """
    names = sorted(set(train_subjects))
    if len(names) < 2 or not fractions[1]:
        return set()
    share = fractions[1] / (fractions[0] + fractions[1])
    count = min(max(1, round(share * len(names))), len(names) - 1)
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[row] for row in order[:count]}


def check_subject_splits(records: Iterable[Any]) -> None:
    """Check that all records of a subject have the same split.

    Args:
        records: objects with the attributes `subject`, `split` and `source`.

    Raises:
        InputError: if a subject is in two splits.
    """
    first_of: dict[str, Any] = {}
    for record in records:
        first = first_of.setdefault(record.subject, record)
        if first.split != record.split:
            raise InputError(
                f"Subject {record.subject!r} is in two splits: in {first.split!r} by "
                f"{first.source} and in {record.split!r} by {record.source}. Keep all files of a "
                "subject in one split; --no-split-folders ignores the names of the folders."
            )
