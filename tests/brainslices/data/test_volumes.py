import gzip
import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainslices.data.volumes import axial_slices, read_volume
from brainslices.errors import InputError

SHAPE, SPACING = (30, 40, 24), (2.0, 1.5, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = (-29, -29, -30)  # world z of the lowest plane: -30 mm


def head():
    """An ellipsoid in planes 4 to 19, darker to the left, with a bright front and top."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.7) ** 2 < 1
    return (inside * (500 + 150 * x + 200 * y + 100 * z)).astype(np.float32)


def save(path, voxels, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(voxels, affine), path)
    return path


@pytest.fixture
def volume_path(tmp_path):
    return save(tmp_path / "head.nii.gz", head())


def test_volume_is_scaled_to_the_unit_range_and_its_head_found(volume_path):
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
    other = save(tmp_path / "other.nii", head() * 0.01 + 7)
    np.testing.assert_allclose(
        read_volume(other).voxels, read_volume(volume_path).voxels, atol=1e-4
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_stored_order_of_the_axes_does_not_matter(tmp_path, volume_path, order):
    _, expected = axial_slices(read_volume(volume_path), 5, (64, 72))
    for flips in itertools.product((1, -1), repeat=3):
        turn = np.column_stack([order, flips])
        image = nib.Nifti1Image(head(), AFFINE).as_reoriented(turn)
        nib.save(image, tmp_path / "turned.nii")
        _, slices = axial_slices(read_volume(tmp_path / "turned.nii"), 5, (64, 72))
        np.testing.assert_array_equal(slices, expected)


def test_slices_show_left_at_the_top_and_the_front_at_the_right(volume_path):
    _, (picture,) = axial_slices(read_volume(volume_path), 1, (64, 64))
    picture = picture.astype(float)
    assert picture[32, 12:52].any()
    assert picture[22, 32] < picture[32, 32] < picture[42, 32]
    assert picture[32, 18] < picture[32, 32] < picture[32, 46]


def test_slices_keep_millimetres_and_lie_centred(volume_path):
    _, (picture,) = axial_slices(read_volume(volume_path), 1, (100, 120))
    assert picture.shape == (100, 120)
    for axis, (count, spacing) in enumerate(zip(SHAPE[:2], SPACING[:2], strict=True)):
        span = np.flatnonzero(picture.any(axis=1 - axis))[[0, -1]]
        voxels = np.flatnonzero(head()[:, :, 12].any(axis=1 - axis))[[0, -1]]
        expected = (voxels - (count - 1) / 2) * spacing + (picture.shape[axis] - 1) / 2
        assert span == pytest.approx(expected, abs=spacing)


def test_voxels_of_one_millimetre_are_taken_as_they_are(tmp_path):
    path = save(tmp_path / "one.nii", head(), np.eye(4))
    volume = read_volume(path)
    _, slices = axial_slices(volume, 24, (50, 60), positions_mm=volume.head_mm)
    low, high = (int(mm) for mm in volume.head_mm)
    _, slices = axial_slices(volume, high - low + 1, (50, 60), positions_mm=volume.head_mm)
    np.testing.assert_array_equal(
        slices[:, 10:40, 10:50],
        np.rint(np.moveaxis(volume.voxels[..., low : high + 1], 2, 0) * 255),
    )
    assert not slices[:, :10].any()


def test_frame_smaller_than_the_field_shrinks_evenly(volume_path):
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
    heights = [volume.bottom_mm + 3 * plane for plane in (10, 10.5, 11)]
    low, between, high = (
        axial_slices(volume, 1, (64, 64), positions_mm=(mm, mm))[1][0].astype(float)
        for mm in heights
    )
    np.testing.assert_allclose(between, (low + high) / 2, atol=1)
    assert (low != high).any()


def test_range_beyond_the_head_is_refused(volume_path):
    volume = read_volume(volume_path)
    message = r"head of .*head\.nii\.gz, -\d+ to \d+ mm.*Received: -100 to 0 mm"
    with pytest.raises(InputError, match=message):
        axial_slices(volume, 4, (32, 32), positions_mm=(-100, 0))
    with pytest.raises(InputError, match="the lower one first. Received: 3 to -3 mm"):
        axial_slices(volume, 4, (32, 32), positions_mm=(3, -3))


def test_analyze_pair_with_trailing_axis_is_read_as_stored_from_right_to_left(tmp_path):
    voxels = np.round(head()[..., np.newaxis]).astype(np.int16)
    affine = np.diag([-2, 1.5, 3, 1])
    for suffix in (".hdr", ".img"):
        save(tmp_path / "OAS1_0001_t88.hdr", voxels, affine, nib.AnalyzeImage)
        volume = read_volume(tmp_path / f"OAS1_0001_t88{suffix}")
        assert volume.voxels.shape == SHAPE
        reference = read_volume(save(tmp_path / "same.nii", voxels[::-1, ..., 0]))
        np.testing.assert_array_equal(volume.voxels, reference.voxels)


def test_sagittal_analyze_is_refused(tmp_path):
    image = nib.AnalyzeImage(np.round(head()).astype(np.int16), np.diag([-2, 1.5, 3, 1]))
    image.header["orient"] = b"\x02"
    nib.save(image, tmp_path / "raw.hdr")
    with pytest.raises(InputError, match=r"raw\.hdr is stored in another .*orient 2, expected 0"):
        read_volume(tmp_path / "raw.hdr")


def test_nifti_pair_is_read(tmp_path, volume_path):
    save(tmp_path / "pair.hdr", head(), kind=nib.Nifti1Pair)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "pair.hdr").voxels, read_volume(volume_path).voxels
    )


def broken(value):
    voxels = head()
    voxels[1, 2, 3] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.stack([head()] * 2, axis=-1), r"Received: shape \(30, 40, 24, 2\).*four_to_three"),
        (head()[..., 0], r"Received: shape \(30, 40"),
        (broken(np.nan), "holds 1 voxels that are NaN or infinite"),
        (broken(-np.inf), "holds 1 voxels that are NaN or infinite"),
        (np.full(SHAPE, 3, np.float32), "holds the value 3 everywhere"),
        (head().astype(np.complex64), "grey values. Received: data type complex64"),
    ],
)
def test_volumes_without_a_plain_head_are_refused(tmp_path, voxels, message):
    path = save(tmp_path / "odd.nii.gz", voxels)
    with pytest.raises(InputError, match=r"odd\.nii\.gz.*" + message):
        read_volume(path)


def test_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(head(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = (2, 0, 0, 0)
    image.header["srow_y"] = (2, 0, 0, 0)
    image.header["srow_z"] = (0, 0, 3, 0)
    nib.Nifti1Image(head(), None, image.header)
    with gzip.open(tmp_path / "flat.nii.gz", "wb") as file:
        image.header["magic"], image.header["vox_offset"] = b"n+1", 352
        file.write(image.header.binaryblock + bytes(4) + head().tobytes(order="F"))
    with pytest.raises(InputError, match=r"flat\.nii\.gz has a header whose affine"):
        read_volume(tmp_path / "flat.nii.gz")


@pytest.mark.parametrize("keep", [0, 100, 1000, -500])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_volumes_are_refused_by_file(tmp_path, keep, suffix):
    path = save(tmp_path / f"cut{suffix}", head())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut\.nii.* is no readable volume"):
        read_volume(path)


def test_missing_partner_missing_file_and_text_are_refused(tmp_path):
    save(tmp_path / "pair.hdr", np.int16(head()), np.diag([-2, 1.5, 3, 1]), nib.AnalyzeImage)
    (tmp_path / "pair.img").unlink()
    (tmp_path / "text.nii").write_text("no volume " * 100)
    (tmp_path / "lone.img").write_bytes(bytes(1000))
    for name in ("pair.hdr", "absent.nii", "text.nii", "lone.img"):
        with pytest.raises(InputError, match=f"{name} is no readable volume"):
            read_volume(tmp_path / name)


def test_single_bright_voxel_is_a_head_of_one_plane(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[15, 20, 12] = 1
    positions, slices = axial_slices(read_volume(save(tmp_path / "dot.nii", voxels)), 2, (64, 64))
    assert positions.tolist() == [0.5, 0.5]
    assert slices.any()
