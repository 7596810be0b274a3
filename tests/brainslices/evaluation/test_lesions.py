"""Synthetic lesions: their places, masks and seeds."""

import numpy as np
import pytest

from brainslices.data.phantom import phantom_slices
from brainslices.evaluation.lesions import LESIONS, Lesion, head_mask


@pytest.fixture(scope="module")
def head():
    return phantom_slices(0, np.array([0.5]), (128, 128))[0].astype("float32") / 255


@pytest.mark.parametrize("lesion", LESIONS, ids=str)
def test_lesion_lies_inside_the_head_and_changes_nothing_else(head, lesion):
    for seed in range(5):
        image, mask = lesion.add_to(head, np.random.default_rng(seed))
        assert (image.dtype, mask.dtype) == (np.float32, bool)
        assert 0 <= image.min() <= image.max() <= 1
        assert head_mask(head)[mask].all()
        changed = image != head
        # The edge of a disc fades over a pixel outside of the mask.
        near = np.zeros_like(mask)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near |= np.roll(mask, (down, right), axis=(0, 1))
        assert not changed[~near].any()
        assert changed[mask].any()


@pytest.mark.parametrize("size", [6, 12, 24])
def test_disc_has_its_area_and_contrast(size):
    grey = np.pad(np.full((80, 80), 0.5, "float32"), 20)
    for kind, sign in (("bright", 1), ("dark", -1)):
        image, mask = Lesion(kind, size, 0.2).add_to(grey, np.random.default_rng(0))
        assert mask.sum() == pytest.approx(np.pi * size**2 / 4, rel=0.15)
        assert np.median((image - grey)[mask]) == pytest.approx(0.2 * sign, abs=1e-6)


def test_squares_are_black_or_show_another_part(head):
    image, mask = Lesion("missing", 12).add_to(head, np.random.default_rng(0))
    assert mask.sum() == 144
    assert (image[mask] == 0).all()
    grid = np.pad(np.random.default_rng(1).random((80, 80), "float32") + 0.1, 20)
    image, mask = Lesion("shifted", 24).add_to(np.clip(grid, 0, 1), np.random.default_rng(0))
    assert mask.sum() == 24**2
    top, left = np.argwhere(mask)[0]
    shown = image[mask].reshape(24, 24)
    moved = [np.roll(np.clip(grid, 0, 1), step, axis=1)[mask].reshape(24, 24) for step in (-12, 12)]
    assert any((shown == block).all() for block in moved)


def test_the_same_seed_makes_the_same_lesion(head):
    first, second, other = (
        Lesion("bright", 6, 0.3).add_to(head, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1] != other[1]).any()


def test_a_head_without_room_has_no_lesion():
    small = np.pad(np.ones((10, 10), "float32"), 20)
    assert Lesion("dark", 12, 0.1).add_to(small, np.random.default_rng(0)) is None
