import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from volume_helpers import AFFINE, SHAPE, SPACING, head, save_volume

from brainslices.data.volumes import axial_slices, read_volume
from brainslices.errors import InputError


@pytest.fixture
def volume_path(tmp_path):
    return save_volume(tmp_path / "head.nii.gz", head())


def test_volume_is_scaled_to_the_unit_range_and_its_head_detected(volume_path):
    volume = read_volume(volume_path)
    assert volume.voxels.shape == SHAPE
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.min() == 0
    assert volume.voxels.max() == 1
    assert volume.spacing == pytest.approx(SPACING)
    planes = np.flatnonzero(head().any(axis=(0, 1)))
    assert volume.head_mm == pytest.approx(-30 + 3 * planes[[0, -1]])
    bright = head() >= np.percentile(head()[head() > 0], 99)
    np.testing.assert_array_equal(volume.voxels == 1, bright)


def test_scale_and_offset_of_the_intensities_do_not_matter(tmp_path, volume_path):
    other = save_volume(tmp_path / "other.nii", head() * 0.01 + 7)
    np.testing.assert_allclose(
        read_volume(other).voxels, read_volume(volume_path).voxels, atol=1e-4
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_stored_order_of_the_axes_does_not_matter(tmp_path, volume_path, order):
    _, expected = axial_slices(read_volume(volume_path), 2, (32, 36))
    for flips in itertools.product((1, -1), repeat=3):
        turn = np.column_stack([order, flips])
        image = nib.Nifti1Image(head(), AFFINE).as_reoriented(turn)
        nib.save(image, tmp_path / "turned.nii")
        _, slices = axial_slices(read_volume(tmp_path / "turned.nii"), 2, (32, 36))
        np.testing.assert_array_equal(slices, expected)


def test_left_is_at_the_top_and_the_front_at_the_right(volume_path):
    _, (image,) = axial_slices(read_volume(volume_path), 1, (64, 64))
    image = image.astype(float)
    assert image[32, 12:52].any()
    assert image[22, 32] < image[32, 32] < image[42, 32]
    assert image[32, 18] < image[32, 32] < image[32, 46]


def test_slices_keep_millimetres_and_lie_centred(volume_path):
    _, (image,) = axial_slices(read_volume(volume_path), 1, (100, 120))
    assert image.shape == (100, 120)
    for axis, (count, spacing) in enumerate(zip(SHAPE[:2], SPACING[:2], strict=True)):
        span = np.flatnonzero(image.any(axis=1 - axis))[[0, -1]]
        voxels = np.flatnonzero(head()[:, :, 12].any(axis=1 - axis))[[0, -1]]
        expected = (voxels - (count - 1) / 2) * spacing + (image.shape[axis] - 1) / 2
        assert span == pytest.approx(expected, abs=spacing)


def test_voxels_of_one_millimetre_are_not_resampled(tmp_path):
    path = save_volume(tmp_path / "one.nii", head(), np.eye(4))
    volume = read_volume(path)
    _, slices = axial_slices(volume, 24, (50, 60), positions_mm=volume.head_mm)
    low, high = (int(mm) for mm in volume.head_mm)
    _, slices = axial_slices(volume, high - low + 1, (50, 60), positions_mm=volume.head_mm)
    np.testing.assert_array_equal(
        slices[:, 10:40, 10:50],
        np.rint(np.moveaxis(volume.voxels[..., low : high + 1], 2, 0) * 255),
    )
    assert not slices[:, :10].any()


def test_small_frame_downsamples_evenly(volume_path):
    volume = read_volume(volume_path)
    _, (large,) = axial_slices(volume, 1, (60, 60))
    _, (small,) = axial_slices(volume, 1, (30, 30))
    blocks = large.reshape(30, 2, 30, 2).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.99


def test_positions_are_fractions_of_the_heads_height(volume_path):
    volume = read_volume(volume_path)
    bottom, top = volume.head_mm
    positions, _ = axial_slices(volume, 3, (32, 32), (0.2, 0.8))
    np.testing.assert_allclose(positions, (0.2, 0.5, 0.8))
    middle = (bottom + top) / 2
    by_mm, slices = axial_slices(volume, 2, (32, 32), positions_mm=(middle, top))
    np.testing.assert_allclose(by_mm, (0.5, 1))
    _, again = axial_slices(volume, 2, (32, 32), (0.5, 1.0))
    np.testing.assert_array_equal(slices, again)


@pytest.mark.parametrize("bottom", np.random.default_rng(0).uniform(-90, -50, 20))
def test_the_whole_head_is_within_the_head_whatever_the_rounding(volume_path, bottom):
    volume = replace(read_volume(volume_path), bottom_mm=bottom, head_mm=(bottom, bottom + 66.6))
    positions, _ = axial_slices(volume, 7, (32, 32), (0, 1))
    assert positions[[0, -1]].tolist() == [0, 1]


def test_slices_between_planes_are_interpolated(volume_path):
    volume = read_volume(volume_path)
    levels_mm = [volume.bottom_mm + 3 * plane for plane in (10, 10.5, 11)]
    low, between, high = (
        axial_slices(volume, 1, (64, 64), positions_mm=(mm, mm))[1][0].astype(float)
        for mm in levels_mm
    )
    np.testing.assert_allclose(between, (low + high) / 2, atol=1)
    assert (low != high).any()


def test_range_beyond_the_head_is_refused(volume_path):
    volume = read_volume(volume_path)
    message = r"head\.nii\.gz.*Received: -100 to 0 mm"
    with pytest.raises(InputError, match=message):
        axial_slices(volume, 4, (32, 32), positions_mm=(-100, 0))
    with pytest.raises(InputError, match="Received: 3 to -3 mm"):
        axial_slices(volume, 4, (32, 32), positions_mm=(3, -3))


def test_single_bright_voxel_is_a_head_of_one_plane(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[15, 20, 12] = 1
    positions, slices = axial_slices(
        read_volume(save_volume(tmp_path / "dot.nii", voxels)), 2, (64, 64)
    )
    assert positions.tolist() == [0.5, 0.5]
    assert slices.any()


@pytest.mark.parametrize("side", [1e-4, 1e4])
def test_implausible_voxels_are_refused_by_file(tmp_path, side):
    path = save_volume(tmp_path / "odd.nii", head(), np.diag([side, 1.5, 3, 1]))
    with pytest.raises(InputError, match=r"odd\.nii must have voxel sides"):
        read_volume(path)


def test_automatic_pixel_suits_human_heads_and_mice(volume_path):
    """The field of view is 60 x 60 mm, or 6 x 6 mm."""
    human = read_volume(volume_path)
    mouse = replace(human, spacing=(SPACING[0] / 10, SPACING[1] / 10, SPACING[2]))
    for frame, expected in ((64, 1), (30, 2), (256, 0.5)):
        by_pixel = axial_slices(human, 1, (frame, frame), pixel_mm=expected)[1]
        np.testing.assert_array_equal(axial_slices(human, 1, (frame, frame))[1], by_pixel)
    (image,) = axial_slices(mouse, 1, (64, 64))[1]
    (same,) = axial_slices(mouse, 1, (64, 64), pixel_mm=0.1)[1]
    np.testing.assert_array_equal(image, same)
    (at_1_mm,) = axial_slices(human, 1, (64, 64))[1]
    np.testing.assert_allclose(image.astype(int), at_1_mm, atol=1)


def test_file_of_one_plane_is_one_slice_in_the_middle(tmp_path):
    volume = read_volume(save_volume(tmp_path / "plane.nii", head()[..., 12]))
    positions, slices = axial_slices(volume, 32, (64, 64))
    assert positions.tolist() == [0.5]
    _, whole = axial_slices(read_volume(save_volume(tmp_path / "a.nii", head())), 1, (64, 64))
    assert slices.shape == whole.shape
    assert np.corrcoef(slices.ravel(), whole.ravel())[0, 1] > 0.95
