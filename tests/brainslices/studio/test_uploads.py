import gzip
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest
from helpers import GREY, save_image

from brainslices.errors import CorruptFileError, InputError
from brainslices.studio import uploads
from brainslices.studio.uploads import read_upload


def save_volume(path, shape=(20, 24, 16)):
    voxels = np.random.default_rng(0).random(shape).astype("float32") * 100
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def test_png_of_the_models_size_is_one_slice(tmp_path):
    upload = read_upload(save_image(tmp_path / "a.png"), GREY.shape)
    assert upload.name == "a.png"
    np.testing.assert_array_equal(upload.slices, GREY[None])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_volume_is_resampled_to_the_models_size(tmp_path, name):
    upload = read_upload(save_volume(tmp_path / name), (32, 40))
    assert (upload.slices.shape, upload.slices.dtype) == ((64, 32, 40), np.uint8)
    assert upload.slices.max() > 100


def test_content_decides_not_the_name(tmp_path):
    volume = save_volume(tmp_path / "a.nii.gz").rename(tmp_path / "a.png")
    assert len(read_upload(volume, (32, 40)).slices) == 64


def test_image_of_another_size_is_refused(tmp_path):
    path = save_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 12 x 10 pixels.*takes 64 x 48") as caught:
        read_upload(path, (64, 48))
    assert str(tmp_path) not in str(caught.value)


def contents(folder):
    """Files that are no scans, by what the message calls them."""
    np.save(folder / "array.npy", GREY)
    with zipfile.ZipFile(folder / "model.keras", "w") as file:
        file.writestr("config.json", "{}")
    (folder / "data.pkl").write_bytes(b"\x80\x04K\x01.")
    save_image(folder / "photo.jpg")
    (folder / "notes.txt").write_text("hello")
    return {
        "array.npy": "a NumPy array",
        "model.keras": "a zip archive",
        "data.pkl": "a pickle",
        "photo.jpg": "a JPEG image",
        "notes.txt": "which is neither",
    }


@pytest.mark.parametrize("suffix", ["", ".png", ".nii"])
def test_other_contents_are_refused_whatever_the_name(tmp_path, suffix):
    for name, kind in contents(tmp_path).items():
        path = (tmp_path / name).rename(tmp_path / f"{name}{suffix}")
        with pytest.raises(InputError, match=f"{re.escape(path.name)}, {kind}"):
            read_upload(path, GREY.shape)


def test_compressed_pickle_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"\x80\x04K\x01."))
    with pytest.raises(InputError, match="a pickle"):
        read_upload(path, GREY.shape)


def test_image_that_would_expand_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    ihdr = b"IHDR" + (60_000).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    import zlib

    path.write_bytes(uploads.PNG + (13).to_bytes(4) + ihdr + zlib.crc32(ihdr).to_bytes(4))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_upload(path, GREY.shape)


def test_image_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="at most 100 pixels. Received: 12 x 10"):
        read_upload(save_image(tmp_path / "a.png"), GREY.shape)


def test_volume_that_expands_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(uploads, "MAX_DECOMPRESSED", 4 << 20)
    with pytest.raises(CorruptFileError, match="at most 4 MB"):
        read_upload(path, GREY.shape)


def test_truncated_files_are_refused(tmp_path):
    for path in (save_image(tmp_path / "a.png"), save_volume(tmp_path / "a.nii.gz")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CorruptFileError, match=path.name):
            read_upload(path, GREY.shape)
