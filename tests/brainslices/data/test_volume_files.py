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


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr"])
def test_nifti_is_read_as_saved(tmp_path, suffix):
    kind = nib.Nifti1Pair if suffix == ".hdr" else nib.Nifti1Image
    voxels, affine = load_volume(save_volume(tmp_path / f"a{suffix}", head(), kind=kind))
    np.testing.assert_array_equal(voxels, head())
    np.testing.assert_array_equal(affine, AFFINE)


def with_voxel(value):
    voxels = head()
    voxels[1, 2, 3] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.stack([head()] * 2, axis=-1), r"Received: shape \(30, 40, 24, 2\)"),
        (head()[..., 0], r"Received: shape \(30, 40"),
        (with_voxel(np.nan), "1 voxels that are NaN or infinite"),
        (with_voxel(-np.inf), "1 voxels that are NaN or infinite"),
        (np.full(SHAPE, 3, np.float32), "the value 3"),
        (head().astype(np.complex64), "Received: data type complex64"),
    ],
)
def test_volumes_without_a_head_are_refused(tmp_path, voxels, message):
    path = save_volume(tmp_path / "odd.nii.gz", voxels)
    with pytest.raises(InputError, match=r"odd\.nii\.gz.*" + message):
        load_volume(path)


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
