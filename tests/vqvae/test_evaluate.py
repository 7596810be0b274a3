"""Reconstruction from a run folder to scores, tables, figures and refusals."""

import csv
import json
import resource
import shutil

import numpy as np
import pytest
from helpers import ROOT, python, run_command
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from brainslices.csv_files import read_rows
from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.crop import CropBox
from brainslices.data.file_selection import FileSelection
from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import mean_image, score_slices, summarize
from brainslices.evaluation.reports import reconstruction_summary
from brainslices.runs.run import Run
from brainslices.visualization.examples import read_examples
from vqvae import VQVAE
from vqvae.evaluate import reconstruct

FILES = ("metrics.json", "slices.csv", "reconstruction.png", "examples.npz", "pictures/")
WRITTEN = set(FILES[:4])
COMMAND = ROOT / "scripts" / "reconstruct.py"


@pytest.fixture(scope="module")
def run(trained_vqvae) -> Run:
    return Run(trained_vqvae)


@pytest.fixture(scope="module")
def model(run):
    return VQVAE.from_run(run)


@pytest.fixture
def loaded_once(model, monkeypatch):
    """`reconstruct` takes the model that is loaded already, and draws nothing."""
    monkeypatch.setattr("vqvae.evaluate.VQVAE.from_run", lambda _run: model)
    monkeypatch.setattr("vqvae.evaluate.reconstruction_figure", lambda path, _rows: path.touch())


@pytest.fixture(scope="module")
def done(run, phantom_archive, tmp_path_factory):
    """A reconstruction of the test split with its images, in batches that do not divide it."""
    out = tmp_path_factory.mktemp("out") / "test"
    metrics = reconstruct(run, phantom_archive.path, out, batch_size=3, pictures=True)
    return out, metrics


@pytest.fixture
def png_folder(phantom_archive, tmp_path):
    """The archive's test slices as files in a folder without splits."""
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


def reference_scores(original, image):
    """(ssim, ssim_foreground, psnr_db) by scikit-image."""
    ssim, similarity = structural_similarity(
        original,
        image,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    foreground = similarity[original > 0.02].mean()
    return ssim, foreground, peak_signal_noise_ratio(original, image, data_range=1)


def read_table(out):
    with (out / "slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_scikit_image_on_the_models_output(done, model, phantom_archive):
    out, metrics = done
    originals = originals_of(phantom_archive)
    images = np.asarray(model.reconstruct(originals))
    pairs = zip(originals[..., 0].astype(float), images[..., 0].astype(float), strict=True)
    expected = np.array([reference_scores(*pair) for pair in pairs])
    written = [
        [float(row[key]) for key in ("ssim", "ssim_foreground", "psnr_db")]
        for row in read_table(out)
    ]
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)
    means = [metrics[key] for key in ("ssim", "ssim_foreground", "psnr_db")]
    np.testing.assert_allclose(means, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_floors_are_black_and_the_mean_of_the_training_slices(done, phantom_archive):
    _, metrics = done
    originals = originals_of(phantom_archive)[..., 0].astype(float)
    mean = originals_of(phantom_archive, "train").mean(axis=0, dtype=float)[..., 0]
    for name, floor in (("floor_black", np.zeros_like(mean)), ("floor_mean_image", mean)):
        expected = np.mean([reference_scores(original, floor) for original in originals], axis=0)
        scores = [metrics[name][key] for key in ("ssim", "ssim_foreground", "psnr_db")]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_codes_are_counted_over_the_whole_split(done, model, phantom_archive):
    _, metrics = done
    codes = np.asarray(model.encode_to_codes(originals_of(phantom_archive)))
    share = np.bincount(codes.ravel(), minlength=32) / codes.size
    used = share[share > 0]
    assert metrics["codebook_usage"] == pytest.approx(len(used) / 32)
    assert metrics["perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-4)
    assert metrics["bits_per_pixel_raw"] == pytest.approx(codes[0].size * 5 / 64**2)


def test_examples_are_the_slices_of_the_figure(done, model, phantom_archive):
    rows, counts = read_examples(done[0] / "examples.npz")
    table = {row["slice_id"]: row for row in read_rows(done[0] / "slices.csv").values()}
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


def test_metrics_file_holds_the_documented_keys(done, phantom_archive):
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


def test_figure_is_not_blank(done):
    with Image.open(done[0] / "reconstruction.png") as figure:
        pixels = np.asarray(figure.convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 20


def test_images_are_the_reconstructions_at_the_source_size(done, model, phantom_archive):
    rows, crop = phantom_archive.indices("test"), phantom_archive.crop
    expected = np.asarray(model.reconstruct(phantom_archive.load(rows)))[..., 0]
    assert len(list((done[0] / "pictures").iterdir())) == len(rows)
    for row, reconstruction in zip(rows, expected, strict=True):
        name = f"{phantom_archive.index[row].slice_id}.png"
        with Image.open(done[0] / "pictures" / name) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
            pixels = np.asarray(image)
        assert np.abs(pixels - 255.0 * reconstruction).max() <= 0.51
        inside = crop.paste(crop.cut(pixels[np.newaxis]), pixels.shape)[0]
        np.testing.assert_array_equal(inside, pixels)
        assert pixels.any()


@pytest.mark.usefixtures("loaded_once")
def test_folder_of_images_scores_as_its_archive(done, run, png_folder, tmp_path):
    metrics = reconstruct(run, png_folder, tmp_path / "out")
    assert (metrics["split"], metrics["archive_hash"]) == (None, None)
    for key, value in done[1].items():
        if isinstance(value, float):
            assert metrics[key] == pytest.approx(value, rel=1e-4), key
    assert metrics["floor_mean_image"] == pytest.approx(done[1]["floor_mean_image"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN


def test_opened_slices_score_as_their_folder(run, png_folder, tmp_path):
    slices = open_slices(png_folder, selection=FileSelection(include=("*_slice_[01].png",)))
    metrics = reconstruct(run, slices, tmp_path / "out")
    assert metrics["slices"] == len(slices) == 2


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
    slices, originals = open_slices(png_folder), originals_of(phantom_archive)[..., 0]
    for row in range(len(slices)):
        assert slices[row].dtype == np.float32
        np.testing.assert_array_equal(slices[row], originals[row])


@pytest.mark.usefixtures("loaded_once")
def test_codecs_are_scored_at_the_models_rate(run, phantom_archive, tmp_path, monkeypatch):
    def scores(images, subjects, rate):
        return {
            "codec_avif": summarize(score_slices(images, images), {}, subjects) | {"rate": rate}
        }

    monkeypatch.setattr("vqvae.evaluate.codec_scores", scores)
    metrics = reconstruct(run, phantom_archive.path, tmp_path / "out", codecs=True)
    codec = metrics["codec_avif"]
    assert (codec["slices"], codec["ssim"]) == (8, 1)
    assert codec["rate"] == metrics["bits_per_pixel_raw"]
    assert "\nAVIF  " in reconstruction_summary(metrics)


@pytest.mark.usefixtures("loaded_once")
def test_earlier_reconstruction_is_replaced_entirely(done, run, phantom_archive, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    metrics = reconstruct(run, phantom_archive.path, out, split="validation", batch_size=8)
    assert metrics["split"] == "validate"
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert {row["split"] for row in read_table(out)} == {"validate"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("loaded_once")
def test_failure_keeps_the_earlier_reconstruction(
    done, run, phantom_archive, tmp_path, monkeypatch
):
    out = shutil.copytree(done[0], tmp_path / "out")
    before = (out / "metrics.json").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqvae.evaluate.reconstruction_figure", full_disk)
    with pytest.raises(OSError, match="No space left"):
        reconstruct(run, phantom_archive.path, out, split="validate")
    assert (out / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("loaded_once")
def test_images_are_never_written_outside_the_folder(run, phantom_archive, tmp_path):
    image = phantom_archive.images[0]
    record = SliceRecord("../../escaped", "case_000", "test", 0.5, "../../escaped.png")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    reconstruct(run, tmp_path / "archive", tmp_path / "out", pictures=True)
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["escaped.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "out"}


def test_run_holds_the_mean_training_image(run, phantom_archive):
    np.testing.assert_array_equal(np.load(run.mean_image_path), mean_image(phantom_archive))


def test_summary_is_an_aligned_table_with_floors(done):
    head, *rows = reconstruction_summary(done[1]).splitlines()
    assert head.split("  ")[-1] == "bits per pixel"
    assert [row[:19].strip() for row in rows[:3]] == ["model", "mean training image", "black image"]
    for key in ("ssim", "ssim_foreground"):
        column = head.index(key)
        for row, scores in zip(rows, (done[1], done[1]["floor_mean_image"]), strict=False):
            low, high = scores[f"{key}_low"], scores[f"{key}_high"]
            assert row[column:].startswith(f"{scores[key]:.4f} [{low:.4f}, {high:.4f}]")
    assert f"perplexity {done[1]['perplexity']:.1f}" in rows[4]
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
def test_summary_notes_what_the_model_may_have_seen(done, changes, note):
    assert note in reconstruction_summary({**done[1], **changes, "subjects": 2})
    assert "note" not in reconstruction_summary({**done[1], "subjects": 2})


@pytest.fixture
def refused(run, phantom_archive, tmp_path):
    """Call `reconstruct` with a wrong argument, check that nothing is written: the message."""

    def call(**wrong):
        arguments = {
            "run": run,
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


def test_folder_without_a_run_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "empty", tmp_path / "absent"):
        message = refused(run=run)
        assert str(run) in message
        assert "config.json" in message


def test_run_without_model_is_refused(refused, run, tmp_path):
    copy = altered_run(run, tmp_path / "young")
    (copy / "model.keras").unlink()
    (copy / "history.csv").unlink()
    message = refused(run=copy)
    assert str(copy) in message
    assert "model.keras" in message


def test_run_of_another_kind_or_format_is_refused(refused, run, tmp_path):
    message = refused(run=altered_run(run, tmp_path / "prior", kind="pixelcnn"))
    assert "'pixelcnn'" in message
    assert "'vqvae'" in message
    assert "version 99" in refused(run=altered_run(run, tmp_path / "newer", format_version=99))


@pytest.mark.parametrize("length", [0, 1000])
def test_corrupt_model_is_refused(refused, run, tmp_path, length):
    copy = altered_run(run, tmp_path / "corrupt")
    model_file = (copy / "model.keras").read_bytes()
    (copy / "model.keras").write_bytes(model_file[:length])
    message = refused(run=copy)
    assert f"{copy}/model.keras" in message
    assert "\n" not in message


@pytest.mark.usefixtures("loaded_once")
def test_corrupt_or_missing_mean_image_is_refused(refused, run, tmp_path):
    copy = altered_run(run, tmp_path / "corrupt")
    (copy / "mean_image.npy").write_bytes(b"")
    assert f"{copy}/mean_image.npy" in refused(run=copy)
    (copy / "mean_image.npy").unlink()
    assert f"{copy}/mean_image.npy" in refused(run=copy)


def test_unknown_and_empty_splits_are_refused(refused, phantom_archive, tmp_path):
    assert "split='exam'" in refused(split="exam")
    record = phantom_archive.index[0]
    archive = write_archive(
        tmp_path / "archive", [(record, phantom_archive.images[0])], intensity_rule="phantom"
    )
    assert "split='test'" in refused(data=archive.path)


@pytest.mark.usefixtures("loaded_once")
def test_images_of_another_size_are_refused(refused, png_folder, tmp_path):
    wrong = png_folder / "case_007_slice_3.png"
    Image.new("L", (48, 56), 99).save(wrong)
    message = refused(data=png_folder)
    assert f"{wrong} has 56 x 48" in message
    assert "64 x 64" in message
    record = SliceRecord("case_000_slice_0", "case_000", "test", 0.5, "phantom")
    image = np.full((32, 32), 99, "uint8")
    write_archive(tmp_path / "archive", [(record, image)], intensity_rule="phantom")
    assert f"{tmp_path / 'archive'} has 32 x 32" in refused(data=tmp_path / "archive")


def test_folder_without_images_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(data=tmp_path / "empty")
    assert str(tmp_path / "absent") in refused(data=tmp_path / "absent")


@pytest.mark.usefixtures("loaded_once")
def test_corrupt_and_black_images_and_volumes_are_refused(refused, png_folder, tmp_path):
    corrupt = png_folder / "case_007_slice_7.png"
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    assert str(corrupt) in refused(data=png_folder)
    black, volumes = tmp_path / "black", tmp_path / "volumes"
    black.mkdir()
    Image.new("L", (64, 64)).save(black / "case_001_slice_0.png")
    assert f"All images of {black} are black" in refused(data=black)
    volumes.mkdir()
    (volumes / "sub-1.nii").write_bytes(b"0")
    assert f"prepare_data.py --source {volumes}" in refused(data=volumes)


def test_output_folder_with_unexpected_files_is_refused(refused, run, done, tmp_path):
    assert str(run.path) in refused(out=run.path)
    notes = shutil.copytree(done[0], tmp_path / "notes")
    (notes / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(out=notes)
    only_images = tmp_path / "mine"
    (only_images / "pictures").mkdir(parents=True)
    assert "pictures" in refused(out=only_images)
    assert "is a file" in refused(out=notes / "notes.txt")


def test_batch_size_must_be_positive(refused):
    assert "batch_size=0" in refused(batch_size=0)


@pytest.mark.slow
def test_command_writes_and_prints_the_table(run, phantom_archive, done, tmp_path, capsys):
    arguments = ["--run", run.path, "--data", phantom_archive.path, "--split", "test"]
    capsys.readouterr()
    assert run_command(COMMAND, *arguments, "--out", tmp_path / "out", "--pictures") == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out == f"{reconstruction_summary(done[1])}\n{tmp_path / 'out'}: {', '.join(FILES)}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN | {"pictures"}


def test_command_refuses_in_one_line_with_status_2(phantom_archive, tmp_path, capsys):
    arguments = ["--run", tmp_path, "--data", phantom_archive.path, "--out", tmp_path / "out"]
    capsys.readouterr()
    assert run_command(COMMAND, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {tmp_path} is not a run folder")
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_help_is_quick_and_names_every_flag():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    ran = python(COMMAND, "--help")
    # Time on the CPU, whatever else the machine does.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    assert ran.returncode == 0
    for flag in ("--run", "--data", "--out", "--split", "--batch-size", "--pictures", "--codecs"):
        assert flag in ran.stdout


@pytest.mark.slow
@pytest.mark.real_data
def test_public_release_is_opened_by_its_split_folders(oasis_pngs):
    slices = open_slices(oasis_pngs)
    assert slices.split == "test"
    assert slices[0].shape == (256, 256)
