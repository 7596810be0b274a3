"""The phantoms are deterministic, resemble heads of the release, and are one anatomy each."""

import re

import numpy as np
import pytest
from scipy import ndimage

from brainslices.data.phantom import CSF, GREY, WHITE, phantom_slices
from brainslices.errors import InputError

SMALL = (64, 64)
POSITIONS = np.linspace(0, 1, 3)


@pytest.fixture(scope="module")
def population():
    """Slices of 10 subjects at the release's size, uint8 of shape (10, 3, 256, 256)."""
    return np.stack([phantom_slices(subject, [0.25, 0.6, 0.9]) for subject in range(10)])


def correlation(a, b):
    brain = (a > 0) & (b > 0)
    return np.corrcoef(a[brain], b[brain])[0, 1]


def ventricle_area(image):
    """Pixels of the fluid pools thicker than any sulcus, away from the outline."""
    interior = ndimage.binary_erosion(image > 0, iterations=20)
    return ndimage.binary_opening((image < 70) & interior, iterations=2).sum()


def test_same_seed_and_subject_give_the_same_slices():
    first = phantom_slices(3, POSITIONS, SMALL, seed=5)
    assert first.dtype == np.uint8 and first.shape == (3, 64, 64)
    np.testing.assert_array_equal(phantom_slices(3, POSITIONS, SMALL, seed=5), first)


def test_a_slice_does_not_depend_on_the_other_positions():
    together = phantom_slices(3, POSITIONS, SMALL)
    np.testing.assert_array_equal(phantom_slices(3, POSITIONS[1:2], SMALL)[0], together[1])


@pytest.mark.parametrize("other", [{"subject": 4, "seed": 5}, {"subject": 3, "seed": 6}])
def test_other_subject_or_seed_is_another_brain(other):
    a = phantom_slices(3, [0.5], (128, 128), seed=5)[0]
    b = phantom_slices(other["subject"], [0.5], (128, 128), seed=other["seed"])[0]
    assert correlation(a, b) < 0.7
    assert np.mean((a > 0) != (b > 0)) > 0.001


@pytest.mark.slow
def test_subjects_differ_in_head_size_brightness_and_ventricles(population):
    heads = population[:, 1]
    areas = (heads > 0).sum(axis=(1, 2))
    medians = np.array([np.median(head[head > 0]) for head in heads])
    ventricles = np.array([ventricle_area(head) for head in heads])
    assert areas.std() / areas.mean() > 0.015
    assert medians.std() > 4
    assert ventricles.max() > 1.5 * ventricles.min() > 0


def test_neighbouring_slices_are_more_alike_than_distant_ones():
    numbers = np.array([0, 1, 3, 15, 10, 11, 13, 25])
    first, second = np.split(phantom_slices(1, numbers / 31, (128, 128)), 2)
    by_gap = {
        gap: np.mean([correlation(slices[0], slices[k]) for slices in (first, second)])
        for k, gap in ((1, 1), (2, 3), (3, 15))
    }
    assert by_gap[1] > 0.9
    assert by_gap[1] > by_gap[3] + 0.05 > by_gap[15] + 0.1


@pytest.mark.slow
def test_halves_nearly_mirror_each_other(population):
    """Up to the folds' own part: compared after smoothing over a fold's width, inside the brain."""
    smooth = ndimage.gaussian_filter(population[:, 1].astype(float), (0, 3, 3))
    smooth[~ndimage.binary_erosion(population[:, 1] > 0, np.ones((1, 17, 17)))] = 0
    mirrored = np.array([correlation(image, image[::-1]) for image in smooth])
    turned = np.array([correlation(image, image[:, ::-1]) for image in smooth])
    assert mirrored.mean() > turned.mean() + 0.2
    assert mirrored.min() > 0.6 and mirrored.max() < 0.95


@pytest.mark.slow
def test_background_is_zero_and_the_brain_is_one_piece_within_the_frame(population):
    for image in population.reshape(-1, 256, 256):
        brain = image > 0
        pieces, count = ndimage.label(brain)
        assert np.bincount(pieces.ravel())[1:].max() > 0.999 * brain.sum(), count
        np.testing.assert_array_equal(ndimage.binary_fill_holes(brain), brain)
        rows, cols = np.flatnonzero(brain.any(axis=1)), np.flatnonzero(brain.any(axis=0))
        assert rows[0] >= 40 and rows[-1] <= 215 and cols[0] >= 24 and cols[-1] <= 231


@pytest.mark.slow
def test_head_lies_as_in_the_release(population):
    """About 144 rows by 170 columns in a middle slice, narrower at the forehead on the right."""
    brain = population[:, 1] > 0
    assert brain.any(axis=2).sum(axis=1).mean() == pytest.approx(142, abs=8)
    assert brain.any(axis=1).sum(axis=1).mean() == pytest.approx(170, abs=8)
    widths = brain.sum(axis=1).mean(axis=0)
    assert widths[128 - 50] > widths[128 + 50] + 5


def test_ventricles_are_largest_at_middle_positions():
    bottom, middle, top = map(ventricle_area, phantom_slices(1, [0, 0.75, 1]))
    assert middle > 1.5 * bottom and middle > 1.3 * top


@pytest.mark.slow
def test_fluid_grey_and_white_matter_are_distinct_modes(population):
    for head in population[:, 1]:
        levels = head[head > 0].astype(float)
        counts = ndimage.gaussian_filter1d(
            np.bincount(np.rint(levels).astype(int), minlength=256), 4
        )
        peaks = np.flatnonzero((counts[1:-1] > counts[:-2]) & (counts[1:-1] >= counts[2:])) + 1
        for tissue in (CSF, GREY, WHITE):
            assert np.abs(peaks - tissue).min() < 0.25 * tissue, (tissue, peaks)


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (300, 200)])
def test_the_head_scales_with_the_frame(size):
    reference = np.sqrt((phantom_slices(2, [0.5])[0] > 0).sum()) / 256
    scaled = phantom_slices(2, [0.5], size)
    assert scaled.shape == (1, *size)
    assert np.sqrt((scaled[0] > 0).sum()) / min(size) == pytest.approx(reference, rel=0.02)
    rows, cols = ndimage.center_of_mass(scaled[0] > 0)
    assert abs(rows - size[0] / 2) < 0.03 * min(size) and abs(cols - size[1] / 2) < 0.06 * min(size)


def test_small_frames_are_downsampled_large_ones():
    large, small = (phantom_slices(2, [0.2, 0.8], size) for size in ((256, 256), SMALL))
    averaged = large.reshape(2, 64, 4, 64, 4).mean(axis=(2, 4))
    assert correlation(averaged, small) > 0.85


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_positions_outside_the_slab_are_refused(bad):
    with pytest.raises(
        InputError, match=rf"`positions`.*\[0, 1\].*Received: \[{re.escape(str(float(bad)))}\]"
    ):
        phantom_slices(0, [0.5, bad], SMALL)


def test_tiny_frames_and_negative_numbers_are_refused():
    with pytest.raises(InputError, match=r"size=\(8, 64\)"):
        phantom_slices(0, [0.5], (8, 64))
    with pytest.raises(InputError, match="subject=-1, seed=0"):
        phantom_slices(-1, [0.5], SMALL)
