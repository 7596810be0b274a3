import gzip

import nibabel as nib
import numpy as np
import pytest
from volume_helpers import AFFINE, SHAPE, head, save_volume

from brainslices.data.volume_files import load_volume
from brainslices.errors import InputError


def test_analyze_pair_with_trailing_axis_is_read_as_stored_from_right_to_left(tmp_path):
    voxels = np.round(head()[..., np.newaxis]).astype(np.int16)
    affine = np.diag([-2, 1.5, 3, 1])
    for suffix in (".hdr", ".img"):
        save_volume(tmp_path / "OAS1_0001_t88.hdr", voxels, affine, nib.AnalyzeImage)
        loaded, _ = load_volume(tmp_path / f"OAS1_0001_t88{suffix}")
        assert (loaded.shape, loaded.dtype) == (SHAPE, np.float32)
        np.testing.assert_array_equal(loaded, voxels[::-1, ..., 0])


def test_sagittal_analyze_is_refused(tmp_path):
    image = nib.AnalyzeImage(np.round(head()).astype(np.int16), np.diag([-2, 1.5, 3, 1]))
    image.header["orient"] = b"\x02"
    nib.save(image, tmp_path / "raw.hdr")
    with pytest.raises(InputError, match=r"raw\.hdr.*orient 2"):
        load_volume(tmp_path / "raw.hdr")


KINDS = {
    ".nii": nib.Nifti1Image,
    ".nii.gz": nib.Nifti1Image,
    ".hdr": nib.Nifti1Pair,
    ".img.gz": nib.Nifti1Pair,
    ".mgh": nib.MGHImage,
    ".mgz": nib.MGHImage,
}


@pytest.mark.parametrize("suffix", KINDS)
def test_every_format_is_read_as_saved(tmp_path, suffix):
    path = save_volume(tmp_path / f"a{suffix}", head(), kind=KINDS[suffix])
    voxels, affine = load_volume(path)
    np.testing.assert_array_equal(voxels, head())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.stack([head()] * 2, axis=-1), r"Received: shape \(30, 40, 24, 2\)"),
        (head()[0, 0], r"Received: shape \(24,"),
        (head()[:, :1], r"axial plane. Received: one plane of shape \(30, 1, 24\)"),
        (head().astype(np.complex64), "Received: data type complex64"),
    ],
)
def test_files_without_a_volume_are_refused(tmp_path, voxels, message):
    path = save_volume(tmp_path / "odd.nii.gz", voxels)
    with pytest.raises(InputError, match=r"odd\.nii\.gz.*" + message):
        load_volume(path)


def test_two_dimensional_file_is_one_plane(tmp_path):
    for number, plane in enumerate((head()[..., 12], head()[..., 12:13])):
        voxels, _ = load_volume(save_volume(tmp_path / f"{number}.nii.gz", plane))
        np.testing.assert_array_equal(voxels, head()[..., 12:13])


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1)])
def test_units_of_the_header_are_scaled_to_mm(tmp_path, unit, scale):
    image = nib.Nifti1Image(head(), np.diag([scale, scale, scale, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "units.nii")
    np.testing.assert_allclose(load_volume(tmp_path / "units.nii")[1], AFFINE, atol=1e-4)


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
    with pytest.raises(InputError, match=r"flat\.nii\.gz.*affine"):
        load_volume(tmp_path / "flat.nii.gz")


@pytest.mark.parametrize("keep", [0, 100, 1000, -500])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_volumes_are_refused_by_file(tmp_path, keep, suffix):
    path = save_volume(tmp_path / f"cut{suffix}", head())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut\.nii.* is not a readable volume"):
        load_volume(path)


def test_missing_partner_missing_file_and_text_are_refused(tmp_path):
    save_volume(tmp_path / "pair.hdr", np.int16(head()), np.diag([-2, 1.5, 3, 1]), nib.AnalyzeImage)
    (tmp_path / "pair.img").unlink()
    (tmp_path / "text.nii").write_text("no volume " * 100)
    (tmp_path / "lone.img").write_bytes(bytes(1000))
    for name in ("pair.hdr", "absent.nii", "text.nii", "lone.img"):
        with pytest.raises(InputError, match=f"{name} is not a readable volume"):
            load_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_volume_with_a_trailing_axis_is_refused(tmp_path, suffix):
    path = save_volume(tmp_path / f"cut{suffix}", head()[..., np.newaxis])
    assert load_volume(path)[0].shape == SHAPE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut\.nii.* is not a readable volume"):
        load_volume(path)


def test_gzip_that_fails_its_checksum_is_refused(tmp_path):
    path = save_volume(tmp_path / "crc.nii.gz", head())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the CRC-32; all voxels inflate as they were saved
    path.write_bytes(content)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), head())
    with pytest.raises(InputError, match=r"crc\.nii\.gz is not a readable volume \(CRC"):
        load_volume(path)


def save_with_header(path, **fields):
    """Save a NIfTI file with some fields of its header overwritten."""
    image = nib.Nifti1Image(head(), AFFINE)
    header = image.header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + head().tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "claims"),  # 140 TB
        ({"dim": [3, 30, 40, 25, 1, 1, 1, 1]}, "claims"),  # one plane more than there is
        ({"dim": [3, 30, 40, -24, 1, 1, 1, 1]}, "-24|negative"),
        ({"dim": [3, 30, 40, 0, 1, 1, 1, 1]}, r"shape \(30, 40, 0\)"),
        ({"vox_offset": 10_000}, "claims"),
        ({"vox_offset": np.inf}, "not a readable volume"),
        ({"vox_offset": np.nan}, "not a readable volume"),
        ({"vox_offset": -400}, "not a readable volume"),
        ({"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}, "nan"),
        ({"pixdim": [1, 1, np.inf, 1, 1, 1, 1, 1]}, "inf"),
        ({"datatype": 9999}, "not a readable volume"),
        ({"xyzt_units": 7}, "unit of length from 0 to 3.*Received: 7"),
    ],
)
def test_false_claims_of_a_header_are_refused(tmp_path, suffix, fields, message):
    path = save_with_header(tmp_path / f"odd{suffix}", **fields)
    with pytest.raises(InputError, match=rf"odd{suffix}.*({message})"):
        load_volume(path)


def test_header_without_false_claims_is_read(tmp_path):
    voxels, _ = load_volume(save_with_header(tmp_path / "good.nii.gz"))
    np.testing.assert_array_equal(voxels, head())
