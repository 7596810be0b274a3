"""Reconstruction from a run folder to scores, tables and figures."""

import json
import shutil

import numpy as np
import pytest
from helpers import csv_rows, reference_scores
from PIL import Image
from reconstruction_helpers import WRITTEN, load_split, write_pngs
from skimage.metrics import peak_signal_noise_ratio

from brainslices.csv_files import read_rows
from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.crop import CropBox
from brainslices.data.file_selection import FileSelection
from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import mean_image, score_slices, summarize
from brainslices.evaluation.reports import reconstruction_summary
from brainslices.visualization.examples import read_examples
from vqvae.config import Encoding
from vqvae.evaluate import _encoder, reconstruct
from vqvae.model import VQVAE


def scores_and_psnr(original, image):
    """Compute (ssim, ssim_foreground, psnr_db) by scikit-image."""
    psnr_db = peak_signal_noise_ratio(original, image, data_range=1)
    return *reference_scores(original, image)[:2], psnr_db


def test_scores_match_scikit_image(reconstruction, model, phantom_archive):
    out, metrics = reconstruction
    originals = load_split(phantom_archive)
    images = np.asarray(model.reconstruct(originals))
    pairs = zip(originals[..., 0].astype(float), images[..., 0].astype(float), strict=True)
    expected = np.array([scores_and_psnr(*pair) for pair in pairs])
    written = [
        [float(row[key]) for key in ("ssim", "ssim_foreground", "psnr_db")]
        for row in csv_rows(out / "slices.csv")
    ]
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)
    means = [metrics[key] for key in ("ssim", "ssim_foreground", "psnr_db")]
    np.testing.assert_allclose(means, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_half_precision_models_have_the_codes_of_float32(run, phantom_archive):
    images = load_split(phantom_archive)
    half, full = (VQVAE.from_run(run, dtype) for dtype in ("mixed_bfloat16", "float32"))
    codes, _, decoded = _encoder(half, Encoding())(images[..., 0], None)
    np.testing.assert_array_equal(codes, full.encode_to_codes(images))
    np.testing.assert_array_equal(decoded, half.decode_codes(codes))


def test_baselines_are_a_black_and_the_mean_training_image(reconstruction, phantom_archive):
    _, metrics = reconstruction
    originals = load_split(phantom_archive)[..., 0].astype(float)
    mean = load_split(phantom_archive, "train").mean(axis=0, dtype=float)[..., 0]
    for name, baseline in (("floor_black", np.zeros_like(mean)), ("floor_mean_image", mean)):
        expected = np.mean([scores_and_psnr(original, baseline) for original in originals], axis=0)
        scores = [metrics[name][key] for key in ("ssim", "ssim_foreground", "psnr_db")]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_codebook_usage_and_perplexity_are_of_the_whole_split(
    reconstruction, model, phantom_archive
):
    _, metrics = reconstruction
    codes = np.asarray(model.encode_to_codes(load_split(phantom_archive)))
    frequencies = np.bincount(codes.ravel(), minlength=32) / codes.size
    used = frequencies[frequencies > 0]
    assert metrics["codebook_usage"] == pytest.approx(len(used) / 32)
    assert metrics["perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-4)
    assert metrics["bits_per_pixel_raw"] == pytest.approx(codes[0].size * 5 / 64**2)


def test_examples_are_the_slices_of_the_figure(reconstruction, model, phantom_archive):
    rows, counts = read_examples(reconstruction[0] / "examples.npz")
    table = {row["slice_id"]: row for row in read_rows(reconstruction[0] / "slices.csv").values()}
    scores = [float(table[row.slice_id]["ssim_foreground"]) for row in rows]
    assert (
        scores == sorted(scores, reverse=True) == pytest.approx([r.ssim_foreground for r in rows])
    )
    assert max(scores) == max(float(row["ssim_foreground"]) for row in table.values())
    assert {row.label for row in rows} == {"best", "median", "worst"}
    indices = phantom_archive.indices("test")
    codes = np.asarray(model.encode_to_codes(phantom_archive.load(indices)))
    np.testing.assert_array_equal(counts, np.bincount(codes.ravel(), minlength=32))
    ids = [phantom_archive.index[index].slice_id for index in indices]
    crop = CropBox(*model.crop)
    for row in rows:
        number = ids.index(row.slice_id)
        original = phantom_archive.load(indices[number : number + 1])[..., 0]
        np.testing.assert_array_equal(row.codes, codes[number])
        np.testing.assert_allclose(row.original, crop.cut(original)[0], atol=1e-6)


def test_metrics_file_holds_the_documented_keys(reconstruction, phantom_archive):
    out, metrics = reconstruction
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


def test_table_has_a_row_per_slice_in_archive_order(reconstruction, phantom_archive):
    table = csv_rows(reconstruction[0] / "slices.csv")
    records = [phantom_archive.index[row] for row in phantom_archive.indices("test")]
    assert [row["slice_id"] for row in table] == [record.slice_id for record in records]
    assert [float(row["position"]) for row in table] == [record.position for record in records]
    assert {(row["subject"], row["split"]) for row in table} == {("case_007", "test")}
    assert list(table[0])[4:] == [
        *("ssim", "ssim_foreground", "psnr_db"),
        *("floor_black_ssim", "floor_black_ssim_foreground"),
        *("floor_mean_image_ssim", "floor_mean_image_ssim_foreground"),
    ]


def test_figure_is_not_blank(reconstruction):
    with Image.open(reconstruction[0] / "reconstruction.png") as figure:
        pixels = np.asarray(figure.convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 20


def test_pictures_are_the_reconstructions_at_the_source_size(
    reconstruction, model, phantom_archive
):
    rows, crop = phantom_archive.indices("test"), phantom_archive.crop
    expected = np.asarray(model.reconstruct(phantom_archive.load(rows)))[..., 0]
    assert len(list((reconstruction[0] / "pictures").iterdir())) == len(rows)
    for row, image in zip(rows, expected, strict=True):
        name = f"{phantom_archive.index[row].slice_id}.png"
        with Image.open(reconstruction[0] / "pictures" / name) as picture:
            assert (picture.mode, picture.size) == ("L", (64, 64))
            pixels = np.asarray(picture)
        assert np.abs(pixels - 255.0 * image).max() <= 0.51
        inside = crop.paste(crop.cut(pixels[np.newaxis]), pixels.shape)[0]
        np.testing.assert_array_equal(inside, pixels)
        assert pixels.any()


@pytest.mark.usefixtures("preloaded_model")
def test_scores_of_an_image_folder_equal_those_of_its_archive(
    reconstruction, run, png_folder, tmp_path
):
    metrics = reconstruct(run, open_slices(png_folder), tmp_path / "out")
    assert (metrics["split"], metrics["archive_hash"]) == (None, None)
    for key, value in reconstruction[1].items():
        if isinstance(value, float):
            assert metrics[key] == pytest.approx(value, rel=1e-4), key
    assert metrics["floor_mean_image"] == pytest.approx(reconstruction[1]["floor_mean_image"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN


def test_selected_slices_are_reconstructed(run, png_folder, tmp_path):
    slices = open_slices(png_folder, selection=FileSelection(include=("*_slice_[01].png",)))
    metrics = reconstruct(run, slices, tmp_path / "out")
    assert metrics["slices"] == len(slices) == 2


def test_subfolders_are_splits(phantom_archive, tmp_path):
    folder = write_pngs(phantom_archive, ["train", "test"], tmp_path / "pngs", "png_{split}")
    assert (open_slices(folder).split, len(open_slices(folder))) == ("test", 8)
    assert set(open_slices(folder, "train").subjects) == {f"case_00{k}" for k in range(5)}
    assert open_slices(folder / "png_test").split is None
    with pytest.raises(InputError, match="`split`.*: test, train.*split='validate'"):
        open_slices(folder, "val")
    with pytest.raises(InputError, match="`split`.*split='test'"):
        open_slices(folder / "png_test", "test")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.real_data
def test_public_release_is_opened_by_its_split_folders(oasis_pngs):
    slices = open_slices(oasis_pngs)
    assert slices.split == "test"
    assert slices[0].shape == (256, 256)


def test_opened_slices_are_float_images(phantom_archive, png_folder):
    slices, originals = open_slices(png_folder), load_split(phantom_archive)[..., 0]
    for row in range(len(slices)):
        assert slices[row].dtype == np.float32
        np.testing.assert_array_equal(slices[row], originals[row])


@pytest.mark.usefixtures("preloaded_model")
def test_codecs_are_scored_at_the_models_rate(run, phantom_archive, tmp_path, monkeypatch):
    def codec_scores(images, subjects, rate):
        return {
            "codec_avif": summarize(score_slices(images, images), {}, subjects) | {"rate": rate}
        }

    monkeypatch.setattr("vqvae.evaluate.codec_scores", codec_scores)
    slices = open_slices(phantom_archive.path)
    metrics = reconstruct(run, slices, tmp_path / "out", codecs=True)
    codec = metrics["codec_avif"]
    assert (codec["slices"], codec["ssim"]) == (8, 1)
    assert codec["rate"] == metrics["bits_per_pixel_raw"]
    assert "\nAVIF  " in reconstruction_summary(metrics)


@pytest.mark.usefixtures("preloaded_model")
def test_earlier_reconstruction_is_replaced_entirely(
    reconstruction, run, phantom_archive, tmp_path
):
    out = shutil.copytree(reconstruction[0], tmp_path / "out")
    slices = open_slices(phantom_archive.path, "validation")
    metrics = reconstruct(run, slices, out, batch_size=8)
    assert metrics["split"] == "validate"
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert {row["split"] for row in csv_rows(out / "slices.csv")} == {"validate"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("preloaded_model")
def test_failure_keeps_the_earlier_reconstruction(
    reconstruction, run, phantom_archive, tmp_path, monkeypatch
):
    out = shutil.copytree(reconstruction[0], tmp_path / "out")
    before = (out / "metrics.json").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqvae.evaluate.reconstruction_figure", full_disk)
    with pytest.raises(OSError, match="No space left"):
        reconstruct(run, open_slices(phantom_archive.path, "validate"), out)
    assert (out / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("preloaded_model")
def test_images_are_never_written_outside_the_folder(run, phantom_archive, tmp_path):
    image = phantom_archive.images[0]
    record = SliceRecord("../../escaped", "case_000", "test", 0.5, "../../escaped.png")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    reconstruct(run, open_slices(tmp_path / "archive"), tmp_path / "out", pictures=True)
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["escaped.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "out"}


def test_run_holds_the_mean_training_image(run, phantom_archive):
    np.testing.assert_array_equal(np.load(run.mean_image_path), mean_image(phantom_archive))


def test_summary_is_an_aligned_table_with_baselines(reconstruction):
    metrics = reconstruction[1]
    head, *rows = reconstruction_summary(metrics).splitlines()
    assert head.split("  ")[-1] == "bits per pixel"
    assert [row[:19].strip() for row in rows[:3]] == ["model", "mean training image", "black image"]
    for key in ("ssim", "ssim_foreground"):
        column = head.index(key)
        for row, scores in zip(rows, (metrics, metrics["floor_mean_image"]), strict=False):
            low, high = scores[f"{key}_low"], scores[f"{key}_high"]
            assert row[column:].startswith(f"{scores[key]:.4f} [{low:.4f}, {high:.4f}]")
    assert f"perplexity {metrics['perplexity']:.1f}" in rows[4]
    assert rows[5] == "test: 1 subjects, 8 slices; [95 % interval by subject]"
    assert rows[6] == "note: only one subject: the intervals carry no information."


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"split": "train"}, "was trained on these slices"),
        ({"split": "validate"}, "the best epoch was chosen by these slices"),
        ({"archive_hash": "other", "split": "train"}, "not the archive the run was trained on"),
        ({"archive_hash": None, "split": None}, "images from a folder"),
    ],
)
def test_summary_notes_possible_overlap_with_the_training_data(reconstruction, changes, note):
    metrics = {**reconstruction[1], "subjects": 2}
    assert note in reconstruction_summary({**metrics, **changes})
    assert "note" not in reconstruction_summary(metrics)
