"""The outside of a head is black, whatever value it has in the file."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from volume_helpers import head, save_volume

from brainslices.data.intensities import fill_outside
from brainslices.data.volumes import axial_slices, read_volume
from brainslices.errors import InputError


def with_air():
    """A head with noise of the air around it, as a scanner writes it."""
    noise = np.abs(np.random.default_rng(0).normal(0, 8, head().shape))
    return np.rint(head() + noise).astype(np.float32)


def z_scored():
    voxels, inside = head(), head() > 0
    voxels[inside] = (voxels[inside] - voxels[inside].mean()) / voxels[inside].std()
    return voxels


def padded(value, planes=4):
    voxels = with_air()
    voxels[:planes], voxels[-planes:] = value, value
    voxels[:, :planes] = value
    return voxels


def slices(tmp_path, voxels):
    volume = read_volume(save_volume(tmp_path / "head.nii.gz", voxels))
    return axial_slices(volume, 3, (64, 64), (0.3, 0.7))[1].astype(int)


def test_zero_around_a_z_scored_head_is_black(tmp_path):
    expected, received = slices(tmp_path, head()), slices(tmp_path, z_scored())
    outside = expected == 0
    assert not received[outside].any()
    assert (received[~outside] > 0).mean() > 0.9
    core = binary_erosion(~outside, np.ones((1, 5, 5)))  # the edges are interpolated
    assert np.corrcoef(received[core], expected[core])[0, 1] > 0.97


@pytest.mark.parametrize("value", [-1024, -32768, 32767, np.nan, np.inf, -np.inf])
def test_padding_changes_nothing(tmp_path, value):
    expected, received = slices(tmp_path, padded(0)), slices(tmp_path, padded(value))
    np.testing.assert_allclose(received, expected, atol=4)


def test_padding_beside_a_masked_outside_changes_nothing(tmp_path):
    voxels = head()
    voxels[:2] = -1024
    np.testing.assert_allclose(slices(tmp_path, voxels), slices(tmp_path, head()), atol=1)


@pytest.mark.parametrize("value", [-1024, -32768])
def test_padding_all_around_a_masked_head_is_its_outside(tmp_path, value):
    expected = slices(tmp_path, np.where(head() > 0, head(), np.nan))
    received = slices(tmp_path, np.where(head() > 0, head(), value))
    np.testing.assert_allclose(received, expected, atol=1)


def ct(air, padding):
    """Hounsfield units: tissue of 0 to 80, bone of 1,000, padding outside of the field of view."""
    inside = binary_erosion(head() > 0, iterations=2)
    voxels = np.where(head() > 0, 1000.0, air).astype(np.float32)
    voxels[inside] = 80 * head()[inside] / head().max()
    voxels[:4], voxels[-4:] = padding, padding
    return voxels


@pytest.mark.parametrize("padding", [-3024, -2000])
@pytest.mark.parametrize("has_noise", [False, True])
def test_padding_of_ct_is_as_dark_as_air(padding, has_noise):
    noise = np.random.default_rng(0).normal(0, 5, head().shape) if has_noise else 0
    filled, low, _ = fill_outside(ct(-1000 + noise, padding), "ct.nii")
    assert low == pytest.approx(-1000, abs=20)
    assert filled.min() == pytest.approx(-1000, abs=40)


@pytest.mark.parametrize("voxels", [head(), head() - 400, with_air(), with_air() / 7 + 3])
def test_ordinary_volumes_keep_their_range(voxels):
    filled, low, high = fill_outside(voxels.astype(np.float32), "head.nii")
    np.testing.assert_array_equal(filled, voxels.astype(np.float32))
    assert (low, high) == tuple(np.percentile(voxels.astype(np.float32), (2, 98)))


def with_voxel(value):
    voxels = head()
    voxels[15, 20, 12] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (with_voxel(np.nan), "1 voxels inside the head that are NaN"),
        (with_voxel(-np.inf), "1 voxels inside the head that are NaN or infinite"),
        (np.full((8, 8, 8), np.nan, np.float32), "NaN or infinity in every voxel"),
        (np.full((8, 8, 8), 3, np.float32), "the value 3 in every voxel"),
    ],
)
def test_volumes_without_a_usable_head_are_refused(voxels, message):
    with pytest.raises(InputError, match=rf"odd\.nii holds .*{message}"):
        fill_outside(voxels, "odd.nii")
