import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import mean_image
from brainslices.runs.run import Run
from vqvae import VQVAE
from vqvae.config import PRESETS
from vqvae.evaluate import reconstruct, summary
from vqvae.training import train

ROOT = Path(__file__).parents[2]
FILES = ("metrics.json", "slices.csv", "reconstruction.png", "pictures/")
WRITTEN = set(FILES[:3])


@pytest.fixture(scope="module")
def run(phantom_archive, tmp_path_factory) -> Run:
    preset, path = PRESETS["default"], tmp_path_factory.mktemp("runs") / "tiny"
    small = {"channels": (8, 16), "num_embeddings": 32, "encoder_blocks": 0, "decoder_blocks": 0}
    model = dataclasses.replace(preset.model, **small)
    training = dataclasses.replace(
        preset.training, epochs=1, batch_size=8, warmup_steps=0, precision="float32"
    )
    train(phantom_archive.path, path, model, training)
    return Run(path)


@pytest.fixture(scope="module")
def model(run):
    return VQVAE.from_run(run)


@pytest.fixture(scope="module")
def done(run, phantom_archive, tmp_path_factory):
    """A reconstruction of the test split with its pictures, in batches that do not divide it."""
    out = tmp_path_factory.mktemp("out") / "test"
    metrics = reconstruct(run.path, phantom_archive.path, out, batch_size=3, pictures=True)
    return out, metrics


@pytest.fixture
def png_folder(phantom_archive, tmp_path):
    """The archive's test slices as files, and nothing that tells their split."""
    return write_pngs(phantom_archive, ["test"], tmp_path / "pngs", "")


def write_pngs(archive, splits, folder, sub_folder):
    folder.mkdir()
    for split in splits:
        for row in archive.indices(split):
            name = f"{archive.index[row].slice_id}.png"
            path = folder / sub_folder.format(split=split) / name
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(archive.images[row]).save(path)
    return folder


def originals_of(archive, split="test"):
    return archive.load(archive.indices(split))


def by_hand(original, picture):
    """(ssim, ssim_foreground, psnr_db) as scikit-image gives them."""
    ssim, similarity = structural_similarity(
        original,
        picture,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    foreground = similarity[original > 0.02].mean()
    return ssim, foreground, peak_signal_noise_ratio(original, picture, data_range=1)


def read_table(out):
    with (out / "slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_scikit_image_on_the_models_output(done, model, phantom_archive):
    out, metrics = done
    originals = originals_of(phantom_archive)
    pictures = np.asarray(model.reconstruct(originals))
    pairs = zip(originals[..., 0].astype(float), pictures[..., 0].astype(float), strict=True)
    expected = np.array([by_hand(*pair) for pair in pairs])
    table = read_table(out)
    found = np.array(
        [[float(row[k]) for k in ("ssim", "ssim_foreground", "psnr_db")] for row in table]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    means = [metrics[key] for key in ("ssim", "ssim_foreground", "psnr_db")]
    np.testing.assert_allclose(means, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_floors_are_black_and_the_mean_of_the_training_slices(done, phantom_archive):
    _, metrics = done
    originals = originals_of(phantom_archive)[..., 0].astype(float)
    mean = originals_of(phantom_archive, "train").mean(axis=0, dtype=float)[..., 0]
    for name, floor in (("floor_black", np.zeros_like(mean)), ("floor_mean_image", mean)):
        expected = np.mean([by_hand(original, floor) for original in originals], axis=0)
        found = [metrics[name][key] for key in ("ssim", "ssim_foreground", "psnr_db")]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_codes_are_counted_over_the_whole_split(done, model, phantom_archive):
    _, metrics = done
    codes = np.asarray(model.encode_to_codes(originals_of(phantom_archive)))
    share = np.bincount(codes.ravel(), minlength=32) / codes.size
    used = share[share > 0]
    assert metrics["codebook_usage"] == pytest.approx(len(used) / 32)
    assert metrics["perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-4)
    assert metrics["bits_per_pixel_raw"] == pytest.approx(codes[0].size * 5 / 64**2)


def test_metrics_file_holds_the_agreed_keys(done, phantom_archive):
    out, metrics = done
    assert json.loads((out / "metrics.json").read_text()) == metrics
    scores = {
        name + end
        for name in ("ssim", "ssim_foreground", "psnr_db")
        for end in ("", "_low", "_high")
    }
    assert set(metrics) == scores | {
        *("floor_black", "floor_mean_image", "subjects", "slices", "bits_per_pixel_raw"),
        *("codebook_usage", "perplexity", "split", "num_embeddings"),
        *("archive_hash", "training_archive_hash", "model_hash"),
    }
    assert set(metrics["floor_black"]) == set(metrics["floor_mean_image"]) == scores
    assert (metrics["subjects"], metrics["slices"], metrics["split"]) == (1, 8, "test")
    assert metrics["archive_hash"] == phantom_archive.content_hash


def test_table_has_a_row_a_slice_in_the_archives_order(done, phantom_archive):
    table = read_table(done[0])
    records = [phantom_archive.index[row] for row in phantom_archive.indices("test")]
    assert [row["slice_id"] for row in table] == [record.slice_id for record in records]
    assert [float(row["position"]) for row in table] == [record.position for record in records]
    assert {(row["subject"], row["split"]) for row in table} == {("case_007", "test")}
    assert list(table[0])[4:] == [
        *("ssim", "ssim_foreground", "psnr_db"),
        *("floor_black_ssim", "floor_black_ssim_foreground"),
        *("floor_mean_image_ssim", "floor_mean_image_ssim_foreground"),
    ]


def test_figure_shows_something(done):
    with Image.open(done[0] / "reconstruction.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 20


def test_pictures_are_the_reconstructions_at_the_source_size(done, model, phantom_archive):
    rows, crop = phantom_archive.indices("test"), phantom_archive.crop
    expected = np.asarray(model.reconstruct(phantom_archive.load(rows)))[..., 0]
    assert len(list((done[0] / "pictures").iterdir())) == len(rows)
    for row, picture in zip(rows, expected, strict=True):
        name = f"{phantom_archive.index[row].slice_id}.png"
        with Image.open(done[0] / "pictures" / name) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
            pixels = np.asarray(image)
        assert np.abs(pixels - 255.0 * picture).max() <= 0.51
        inside = crop.paste(crop.cut(pixels[np.newaxis]), pixels.shape)[0]
        np.testing.assert_array_equal(inside, pixels)
        assert pixels.any()


def test_folder_of_pictures_scores_as_its_archive(done, run, png_folder, tmp_path):
    metrics = reconstruct(run.path, png_folder, tmp_path / "out")
    assert (metrics["split"], metrics["archive_hash"]) == (None, None)
    for key, value in done[1].items():
        if isinstance(value, float):
            assert metrics[key] == pytest.approx(value, rel=1e-4), key
    assert metrics["floor_mean_image"] == pytest.approx(done[1]["floor_mean_image"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN


def test_sub_folders_offer_their_splits(phantom_archive, tmp_path):
    folder = write_pngs(phantom_archive, ["train", "test"], tmp_path / "pngs", "png_{split}")
    assert (open_slices(folder).split, len(open_slices(folder))) == ("test", 8)
    assert set(open_slices(folder, "train").subjects) == {f"case_00{k}" for k in range(5)}
    assert open_slices(folder / "png_test").split is None
    with pytest.raises(InputError, match="`split`.*: test, train.*split='validate'"):
        open_slices(folder, "val")
    with pytest.raises(InputError, match="`split`.*split='test'"):
        open_slices(folder / "png_test", "test")


def test_slices_are_floats_of_the_files(phantom_archive, png_folder):
    found, originals = open_slices(png_folder), originals_of(phantom_archive)[..., 0]
    for row in range(len(found)):
        assert found[row].dtype == np.float32
        np.testing.assert_array_equal(found[row], originals[row])


def test_codecs_come_at_the_models_rate_or_just_above(run, phantom_archive, tmp_path):
    metrics = reconstruct(run.path, phantom_archive.path, tmp_path / "out", codecs=True)
    for codec in ("codec_avif", "codec_jpeg2000"):
        ratio = metrics[codec]["bits_per_pixel"] / metrics["bits_per_pixel_raw"]
        assert 1 <= ratio < 1.2
        assert metrics["floor_black"]["ssim"] < metrics[codec]["ssim"] < 1
        assert metrics[codec]["slices"] == 8
    assert "\nAVIF  " in summary(metrics)


def test_earlier_reconstruction_is_replaced_whole(done, run, phantom_archive, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    metrics = reconstruct(run.path, phantom_archive.path, out, split="validation")
    assert metrics["split"] == "validate"
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert {row["split"] for row in read_table(out)} == {"validate"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_on_the_way_leaves_the_earlier_reconstruction(
    done, run, phantom_archive, tmp_path, monkeypatch
):
    out = shutil.copytree(done[0], tmp_path / "out")
    before = (out / "metrics.json").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqvae.evaluate.reconstruction_figure", full_disk)
    with pytest.raises(OSError, match="No space left"):
        reconstruct(run.path, phantom_archive.path, out, split="validate")
    assert (out / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_picture_never_leaves_the_folder(run, phantom_archive, tmp_path):
    image = phantom_archive.images[0]
    record = SliceRecord("../../escaped", "case_000", "test", 0.5, "../../escaped.png")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    reconstruct(run.path, tmp_path / "archive", tmp_path / "out", pictures=True)
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["escaped.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "out"}


def test_run_keeps_the_mean_training_image(run, phantom_archive):
    np.testing.assert_array_equal(np.load(run.mean_image_path), mean_image(phantom_archive))


def test_summary_is_an_aligned_table_with_floors(done):
    head, *rows = summary(done[1]).splitlines()
    assert head.split("  ")[-1] == "bits per pixel"
    assert [row[:19].strip() for row in rows[:3]] == ["model", "mean training image", "black image"]
    for key in ("ssim", "ssim_foreground"):
        column = head.index(key)
        for row, scores in zip(rows, (done[1], done[1]["floor_mean_image"]), strict=False):
            low, high = scores[f"{key}_low"], scores[f"{key}_high"]
            assert row[column:].startswith(f"{scores[key]:.4f} [{low:.4f}, {high:.4f}]")
    assert f"perplexity {done[1]['perplexity']:.1f}" in rows[4]
    assert rows[5] == "test: 1 subjects, 8 slices; [95 % interval by subject]"
    assert rows[6] == "note: one subject alone: the intervals say nothing."


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"split": "train"}, "was trained on these slices"),
        ({"split": "validate"}, "the best epoch was chosen by these slices"),
        ({"archive_hash": "other", "split": "train"}, "another archive than the run"),
        ({"archive_hash": None, "split": None}, "pictures from a folder"),
    ],
)
def test_summary_says_what_the_model_may_have_seen(done, facts, note):
    assert note in summary({**done[1], **facts, "subjects": 2})
    assert "note" not in summary({**done[1], "subjects": 2})


@pytest.fixture
def refused(run, phantom_archive, tmp_path):
    """Calls `reconstruct` with something wrong; gives the message, having seen nothing written."""

    def call(**wrong):
        arguments = {
            "run": run.path,
            "data": phantom_archive.path,
            "out": tmp_path / "out",
            **wrong,
        }
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as caught:
            reconstruct(**arguments)
        assert sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    return call


def altered_run(run, folder, **config):
    copy = shutil.copytree(run.path, folder)
    values = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(values))
    return copy


def test_folder_that_is_no_run_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a run folder: it has no config.json" in refused(run=tmp_path / "empty")
    assert "is not a run folder" in refused(run=tmp_path / "absent")


def test_run_without_model_is_refused(refused, run, tmp_path):
    copy = altered_run(run, tmp_path / "young")
    (copy / "model.keras").unlink()
    (copy / "history.csv").unlink()
    assert f"Run {copy} has no model.keras: no epoch has finished yet" in refused(run=copy)


def test_run_of_another_kind_or_format_is_refused(refused, run, tmp_path):
    other = altered_run(run, tmp_path / "prior", kind="pixelcnn")
    assert "holds a model of kind 'pixelcnn'; expected 'vqvae'" in refused(run=other)
    newer = altered_run(run, tmp_path / "newer", format_version=99)
    assert "has format version 99" in refused(run=newer)


@pytest.mark.parametrize("length", [0, 1000])
def test_damaged_model_is_refused(refused, run, tmp_path, length):
    copy = altered_run(run, tmp_path / "damaged")
    whole = (copy / "model.keras").read_bytes()
    (copy / "model.keras").write_bytes(whole[:length])
    message = refused(run=copy)
    assert f"{copy}/model.keras cannot be loaded: it is damaged" in message
    assert "\n" not in message


def test_damaged_or_missing_mean_image_is_refused(refused, run, tmp_path):
    copy = altered_run(run, tmp_path / "damaged")
    (copy / "mean_image.npy").write_bytes(b"")
    assert f"{copy}/mean_image.npy cannot be read (" in refused(run=copy)
    (copy / "mean_image.npy").unlink()
    assert "mean_image.npy cannot be read (" in refused(run=copy)


def test_unknown_and_empty_splits_are_refused(refused, run, phantom_archive, tmp_path):
    assert "Received: split='exam'" in refused(split="exam")
    record = phantom_archive.index[0]
    archive = write_archive(
        tmp_path / "archive", [(record, phantom_archive.images[0])], intensity_rule="phantom"
    )
    assert "split='test'" in refused(data=archive.path)


def test_pictures_of_another_size_are_refused(refused, png_folder, tmp_path):
    wrong = png_folder / "case_007_slice_3.png"
    Image.new("L", (48, 56), 99).save(wrong)
    message = refused(data=png_folder)
    assert f"{wrong} has 56 x 48 pixels (rows x cols), but the model" in message
    assert "takes 64 x 64. Give pictures of that size" in message
    record = SliceRecord("case_000_slice_0", "case_000", "test", 0.5, "phantom")
    image = np.full((32, 32), 99, "uint8")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    assert f"{tmp_path / 'archive'} has 32 x 32 pixels" in refused(data=tmp_path / "archive")


def test_folder_without_pictures_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no images" in refused(data=tmp_path / "empty")
    assert str(tmp_path / "absent") in refused(data=tmp_path / "absent")


def test_damaged_and_black_pictures_and_volumes_are_refused(refused, png_folder, tmp_path):
    damaged = png_folder / "case_007_slice_7.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert f"{damaged} is not a readable image" in refused(data=png_folder)
    black, volumes = tmp_path / "black", tmp_path / "volumes"
    black.mkdir()
    Image.new("L", (64, 64)).save(black / "case_001_slice_0.png")
    assert f"All pictures of {black} are black" in refused(data=black)
    volumes.mkdir()
    (volumes / "sub-1.nii").write_bytes(b"0")
    assert f"prepare_data.py --source {volumes}" in refused(data=volumes)


def test_folder_with_other_things_is_refused(refused, run, done, tmp_path):
    assert f"{run.path} holds other things than an earlier reconstruction" in refused(out=run.path)
    notes = shutil.copytree(done[0], tmp_path / "notes")
    (notes / "notes.txt").write_text("mine")
    assert "earlier reconstruction (notes.txt). Give a new" in refused(out=notes)
    only_pictures = tmp_path / "mine"
    (only_pictures / "pictures").mkdir(parents=True)
    assert "earlier reconstruction (pictures)" in refused(out=only_pictures)
    assert "is a file; --out must be a folder" in refused(out=notes / "notes.txt")


def test_batch_size_must_be_positive(refused):
    assert "Received: batch_size=0" in refused(batch_size=0)


def command(*words):
    process = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reconstruct.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return process.returncode, process.stdout, process.stderr


def test_command_writes_and_prints_the_table(run, phantom_archive, done, tmp_path):
    words = ["--run", run.path, "--data", phantom_archive.path, "--split", "test"]
    status, out, err = command(*words, "--out", tmp_path / "out", "--pictures")
    assert status == 0, err
    assert "Traceback" not in err
    assert out == f"{summary(done[1])}\n{tmp_path / 'out'}: {', '.join(FILES)}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN | {"pictures"}


def test_command_refuses_in_one_line_with_status_2(phantom_archive, tmp_path):
    words = ["--run", tmp_path, "--data", phantom_archive.path, "--out", tmp_path / "out"]
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path} is not a run folder")
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_help_is_quick_and_names_every_flag():
    began = time.perf_counter()
    status, out, _ = command("--help")
    assert time.perf_counter() - began < 2  # one second on a machine that is not busy
    assert status == 0
    for flag in ("--run", "--data", "--out", "--split", "--batch-size", "--pictures", "--codecs"):
        assert flag in out


@pytest.mark.real_data
def test_public_release_is_opened_by_its_split_folders(oasis_pngs):
    slices = open_slices(oasis_pngs)
    assert slices.split == "test"
    assert slices[0].shape == (256, 256)
