"""Arguments, runs and images that a reconstruction refuses."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import no_new_files
from PIL import Image

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from vqvae.config import Encoding
from vqvae.evaluate import reconstruct


@pytest.fixture
def error_message(run, phantom_archive, tmp_path):
    """Function that reconstructs with a wrong argument and returns the message of the error.

    It checks that nothing is written.
    """

    def call(data=phantom_archive.path, split=None, **wrong):
        arguments = {"run": run, "out": tmp_path / "out", **wrong}
        with no_new_files(tmp_path), pytest.raises(InputError) as caught:
            reconstruct(slices=open_slices(data, split), **arguments)
        return str(caught.value)

    return call


def copy_run(run, folder, **config):
    """Copy a run with changes of its configuration."""
    copy = shutil.copytree(run.path, folder)
    values = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(values))
    return copy


def test_folder_without_a_run_is_refused(error_message, tmp_path):
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "empty", tmp_path / "absent"):
        message = error_message(run=run)
        assert str(run) in message
        assert "config.json" in message


def test_run_without_model_is_refused(error_message, run, tmp_path):
    copy = copy_run(run, tmp_path / "unfinished")
    (copy / "model.keras").unlink()
    (copy / "history.csv").unlink()
    message = error_message(run=copy)
    assert str(copy) in message
    assert "model.keras" in message


def test_run_of_another_kind_or_format_is_refused(error_message, run, tmp_path):
    message = error_message(run=copy_run(run, tmp_path / "prior", kind="pixelcnn"))
    assert "'pixelcnn'" in message
    assert "'vqvae'" in message
    assert "version 99" in error_message(run=copy_run(run, tmp_path / "newer", format_version=99))


@pytest.mark.parametrize("length", [0, 1000])
def test_corrupt_model_is_refused(error_message, run, tmp_path, length):
    copy = copy_run(run, tmp_path / "corrupt")
    model_file = (copy / "model.keras").read_bytes()
    (copy / "model.keras").write_bytes(model_file[:length])
    message = error_message(run=copy)
    assert f"{copy}/model.keras" in message
    assert "\n" not in message


@pytest.mark.usefixtures("preloaded_model")
def test_corrupt_or_missing_mean_image_is_refused(error_message, run, tmp_path):
    copy = copy_run(run, tmp_path / "corrupt")
    (copy / "mean_image.npy").write_bytes(b"")
    assert f"{copy}/mean_image.npy" in error_message(run=copy)
    (copy / "mean_image.npy").unlink()
    assert f"{copy}/mean_image.npy" in error_message(run=copy)


def test_unknown_and_empty_splits_are_refused(error_message, phantom_archive, tmp_path):
    assert "split='exam'" in error_message(split="exam")
    record = phantom_archive.index[0]
    archive = write_archive(
        tmp_path / "archive", [(record, phantom_archive.images[0])], intensity_rule="phantom"
    )
    assert "split='test'" in error_message(data=archive.path)


@pytest.mark.usefixtures("preloaded_model")
def test_images_of_another_size_are_refused(error_message, png_folder, tmp_path):
    wrong = png_folder / "case_007_slice_3.png"
    Image.new("L", (48, 56), 99).save(wrong)
    message = error_message(data=png_folder)
    assert f"{wrong} has 56 x 48" in message
    assert "64 x 64" in message
    record = SliceRecord("case_000_slice_0", "case_000", "test", 0.5, "phantom")
    image = np.full((32, 32), 99, "uint8")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    assert f"{tmp_path / 'archive'} has 32 x 32" in error_message(data=tmp_path / "archive")


def test_folder_without_images_is_refused(error_message, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in error_message(data=tmp_path / "empty")
    assert str(tmp_path / "absent") in error_message(data=tmp_path / "absent")


@pytest.mark.usefixtures("preloaded_model")
def test_corrupt_and_black_images_and_volumes_are_refused(error_message, png_folder, tmp_path):
    corrupt = png_folder / "case_007_slice_7.png"
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    assert str(corrupt) in error_message(data=png_folder)
    black, volumes = tmp_path / "black", tmp_path / "volumes"
    black.mkdir()
    Image.new("L", (64, 64)).save(black / "case_001_slice_0.png")
    assert f"All images of {black} are black" in error_message(data=black)
    volumes.mkdir()
    (volumes / "sub-1.nii").write_bytes(b"0")
    assert f"prepare_data.py --source {volumes}" in error_message(data=volumes)


def test_output_folder_with_unexpected_files_is_refused(
    error_message, run, reconstruction, tmp_path
):
    assert str(run.path) in error_message(out=run.path)
    notes = shutil.copytree(reconstruction[0], tmp_path / "notes")
    (notes / "notes.txt").write_text("mine")
    assert "notes.txt" in error_message(out=notes)
    pictures = tmp_path / "pictures_only"
    (pictures / "pictures").mkdir(parents=True)
    assert "pictures" in error_message(out=pictures)
    assert "is a file" in error_message(out=notes / "notes.txt")


def test_batch_size_must_be_positive(error_message):
    assert "batch_size=0" in error_message(batch_size=0)


def test_entropy_model_of_other_codes_or_slices_is_refused(error_message, model):
    def of(vqvae_hash, count):
        return SimpleNamespace(metadata={"vqvae_hash": vqvae_hash}, position=np.zeros(count))

    for other, expected in (
        (of("f" * 64, 4), "must model the codes of this VQ-VAE"),
        (of(model.file_hash, 99), "Received: one of 99 slices"),
    ):
        assert expected in error_message(encoding=Encoding(entropy_model=other))
