import shutil

import numpy as np
import pytest
from helpers import (
    ROOT,
    captured_command,
    error_line,
    no_new_files,
    python,
    run_command,
    save_image,
)
from PIL import Image

from brainslices.csv_files import read_rows
from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run
from pixelcnn import PixelCNN, SlicePrior
from pixelcnn.generate import FILES, MEASURES
from pixelcnn.sampling import MASKED
from vqvae.inpainting import Inpainting
from vqvae.model import VQVAE

COMMAND = ROOT / "scripts" / "sample.py"
TRAIN_POSITIONS = np.linspace(0, 1, 8, dtype="float32")

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture
def sample(trained_prior, tmp_path):
    """Sample with the tiny prior into a folder; return the folder and the output."""

    def run(name, *arguments):
        words = ("--run", trained_prior, "--out", tmp_path / name, *arguments)
        status, out, err = captured_command(COMMAND, *words)
        assert status == 0, err
        return tmp_path / name, out

    return run


@pytest.fixture(scope="module")
def sampled(trained_prior, tmp_path_factory):
    """Five samples, in batches that do not divide them: the folder and the output."""
    out = tmp_path_factory.mktemp("out") / "samples"
    arguments = ("--count", 5, "--seed", 3, "--batch-size", 2)
    status, printed, err = captured_command(
        COMMAND, "--run", trained_prior, "--out", out, *arguments
    )
    assert status == 0, err
    return out, printed


@pytest.fixture(scope="module")
def vqvae(trained_vqvae):
    return VQVAE.from_run(trained_vqvae, "float32")


def arrays(out):
    with np.load(out / "codes.npz") as file:
        return {key: file[key] for key in file.files}


def files(out):
    return sorted((out / "slices").iterdir())


def slices(out):
    """The written images, uint8 of shape (n, rows, cols)."""
    images = []
    for path in files(out):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            images.append(np.asarray(image))
    return np.stack(images)


# Output


@pytest.mark.slow
def test_folder_holds_slices_of_the_source_size(sampled):
    out, printed = sampled
    assert {path.name for path in out.iterdir()} == set(FILES[:4])
    positions = ("0.000", "0.250", "0.500", "0.750", "1.000")
    names = [f"sample_{k:04d}_position_{text}.png" for k, text in enumerate(positions)]
    assert [path.name for path in files(out)] == names
    assert slices(out).shape == (5, 64, 64)
    with Image.open(out / "contact_sheet.png") as image:
        assert image.format == "PNG"
    line, last = printed.splitlines()
    assert line.startswith("5 samples at temperature 1, ")
    assert last == f"{out}: slices/, contact_sheet.png, codes.npz, metrics.json"


@pytest.mark.slow
def test_codes_decode_to_the_slices(sampled, vqvae):
    results = arrays(sampled[0])
    assert results["codes"].shape == (5, *vqvae.code_grid_shape)
    assert results["codes"].max() < 32
    np.testing.assert_array_equal(results["positions"], np.linspace(0, 1, 5, dtype="float32"))
    images = np.asarray(vqvae.decode_codes(results["codes"].astype("int32")))[..., 0]
    np.testing.assert_allclose(slices(sampled[0]), 255 * images, atol=0.501)


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_model(sampled, trained_prior):
    results, model = arrays(sampled[0]), PixelCNN.from_run(trained_prior)
    expected = model.log_prob(results["codes"].astype("int32"), results["positions"])
    np.testing.assert_allclose(results["log_prob"], expected, atol=1e-4)


@pytest.mark.slow
def test_metrics_hold_options_hashes_and_rates(sampled, trained_vqvae):
    metrics = read_json(sampled[0] / "metrics.json")
    rates = {f"nats_per_code_{name}" for name in ("train", "validate", "test", "samples")}
    options = {"samples": 5, "seed": 3, "temperature": 1.0, "top_k": None, "top_p": None}
    of_test = {"nats_per_code", "bits_per_slice", "bits_per_pixel_prior"}
    of_test |= {"nats_per_code_by_position"}
    assert set(metrics) == rates | of_test | {*options, "vqvae_hash", "prior_hash", "split"}
    assert metrics["nats_per_code"] == metrics["nats_per_code_test"]
    assert options.items() <= metrics.items()
    assert metrics["vqvae_hash"] == CodeGrids.load(Run(trained_vqvae).code_grids_path).vqvae_hash
    log_prob = arrays(sampled[0])["log_prob"]
    assert metrics["nats_per_code_samples"] == pytest.approx(-log_prob.mean())


@pytest.mark.slow
def test_slice_prior_samples_the_same_images(sampled, trained_prior):
    prior = SlicePrior.from_run(trained_prior)
    images = prior.sample(5, seed=3, batch_size=5)
    np.testing.assert_allclose(slices(sampled[0]), 255 * images[..., 0], atol=0.501)


@pytest.mark.slow
def test_same_seed_writes_the_same_bytes(sample, sampled, tmp_path):
    sample("out", "--count", 6, "--seed", 1)
    out, _ = sample("out", "--count", 5, "--seed", 3, "--batch-size", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in files(out)] == [path.name for path in files(sampled[0])]
    for path in (*files(out), out / "contact_sheet.png", out / "metrics.json"):
        assert path.read_bytes() == (sampled[0] / path.relative_to(out)).read_bytes()


# Comparison with real slices


@pytest.mark.slow
def test_evaluation_and_nearest_slices(sample, sampled):
    arguments = ("--count", 6, "--position", 0.8, 0.4, "--evaluate", "--nearest")
    out, printed = sample("out", *arguments)
    np.testing.assert_array_equal(arrays(out)["positions"], np.float32([0.4] * 3 + [0.8] * 3))
    metrics = read_json(out / "metrics.json")
    scores = {name + end for name in MEASURES for end in ("", "_real")}
    intervals = {f"{name}{end}" for name in scores for end in ("_low", "_high")}
    assert set(metrics) == scores | intervals | set(read_json(sampled[0] / "metrics.json"))
    assert all(metrics[name] is not None for name in scores)
    assert 0 < metrics["nearest_train_ssim"] < 1
    assert len(read_rows(out / "nearest.csv")) == 6
    table = printed.splitlines()[1:-1]
    assert table[0].split() == ["samples", "real"]
    assert len(table) == 1 + len(MEASURES)


@pytest.mark.slow
def test_moved_archive_is_read_from_data(linked, phantom_archive, tmp_path):
    prior, vqvae = linked
    environment = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**environment, "archive": str(tmp_path / "gone")})
    arguments = ["--run", prior.path, "--count", 2, "--position", 0.5, "--nearest"]
    data = ["--data", phantom_archive.path, "--out", tmp_path / "out"]
    assert run_command(COMMAND, *arguments, *data) == 0


# Inpainting


@pytest.fixture(scope="module")
def original(phantom_archive):
    return phantom_archive.images[phantom_archive.indices("test")[4]]


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [None, (24, 26, 16, 14)], ids=["lower half", "hole"])
def test_inpainting_keeps_the_observed_part(sample, original, vqvae, tmp_path, hidden):
    box = hidden or (32, 0, 32, 64)
    inside = (slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3]))
    arguments = ["--count", 3, *(["--hidden", *hidden] if hidden else [])]
    path = save_image(tmp_path / "slice.png", original)
    out, printed = sample("out", "--complete", path, *arguments)
    results, metrics = arrays(out), read_json(out / "metrics.json")
    assert str(path) in printed
    assert (metrics["completed"], metrics["hidden"]) == (str(path), list(box))
    assert "nats_per_code_samples" not in metrics
    assert (results["positions"] == np.float32(metrics["position"])).all()
    assert np.abs(TRAIN_POSITIONS - results["positions"][0]).min() < 1e-6

    observed = Inpainting(vqvae, original, hidden).observed_codes(MASKED)
    is_observed = observed != MASKED
    for codes in results["codes"]:
        np.testing.assert_array_equal(codes[is_observed], observed[is_observed])
    assert len(np.unique(results["codes"].reshape(3, -1), axis=0)) == 3
    decoded = np.asarray(vqvae.decode_codes(results["codes"].astype("int32")))[..., 0]
    expected = np.tile(original.astype(float), (3, 1, 1))
    expected[:, *inside] = 255 * decoded[:, *inside]
    np.testing.assert_allclose(slices(out), expected, atol=0.501)


@pytest.mark.slow
def test_hidden_pixels_change_nothing(sample, original, tmp_path):
    other = original.copy()
    other[24:40, 26:40] = np.random.default_rng(0).integers(0, 256, (16, 14))
    codes = []
    for name, pixels in (("first", original), ("second", other)):
        path = save_image(tmp_path / f"{name}.png", pixels)
        arguments = ("--complete", path, "--hidden", 24, 26, 16, 14, "--count", 2)
        codes.append(arrays(sample(name, *arguments)[0])["codes"])
    np.testing.assert_array_equal(*codes)


# Errors


@pytest.fixture
def error_of(trained_prior, tmp_path):
    """Run a command that must fail without writing; return its one-line message."""

    def run(*arguments, run=trained_prior, out=None):
        flags = ["--run", run, "--out", out or tmp_path / "out", "--count", 2, *arguments]
        with no_new_files(tmp_path):
            return error_line(COMMAND, *flags)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--position", 0.5, 1.5], "position=1.5"),
        (["--position", "nan"], "position=nan"),
        (["--temperature", 0], "temperature=0"),
        (["--top-k", 33], "top_k=33"),
        (["--top-p", "nan"], "top_p=nan"),
        (["--evaluate", "--position", 0.1, 0.9], "Received: 2 slices"),
    ],
    ids=str,
)
def test_values_out_of_range_are_errors(error_of, arguments, message):
    assert message in error_of(*arguments)


def test_contradictory_flags_are_errors(error_of):
    assert "`hidden` needs --complete" in error_of("--hidden", 0, 0, 9, 9)
    for flag in ("--evaluate", "--nearest"):
        assert "`complete` excludes" in error_of("--complete", "slice.png", flag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", 0], "count=0"),
        (["--seed", -1], "seed=-1"),
        (["--batch-size", 0], "batch_size=0"),
        (["--count", "many"], "'many'"),
        (["--hidden", 1, 2, 3], "--hidden"),
        (["--top-k", 1.5], "1.5"),
    ],
    ids=str,
)
def test_the_parser_rejects_values_that_fit_no_model(tmp_path, arguments, message):
    words = ("--run", tmp_path / "run", "--out", tmp_path / "out", *arguments)
    status, _, err = captured_command(COMMAND, *words)
    assert status == 2
    # The parser draws a frame and cuts lines to the terminal's width.
    assert message in " ".join(err.replace("│", " ").split())
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_images_that_cannot_be_inpainted_are_errors(error_of, original, tmp_path):
    assert "absent.png" in error_of("--complete", tmp_path / "absent.png")
    wide = save_image(tmp_path / "wide.png", np.zeros((48, 56), "uint8"))
    assert "(48, 56)" in error_of("--complete", wide)
    path = save_image(tmp_path / "slice.png", original)
    hidden = ("--hidden", 60, 60, 5, 5)
    assert "hidden=(60, 60, 5, 5)" in error_of("--complete", path, *hidden)
    assert "position=(0.1, 0.2)" in error_of("--complete", path, "--position", 0.1, 0.2)


@pytest.mark.slow
def test_runs_without_a_usable_prior_are_errors(error_of, trained_vqvae, linked, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert str(empty) in error_of(run=empty)
    assert "'vqvae'" in error_of(run=trained_vqvae)
    prior, _ = linked
    prior.model_path.write_bytes(prior.model_path.read_bytes()[:1000])
    assert str(prior.model_path) in error_of(run=prior.path)
    prior.model_path.unlink()
    assert "model.keras" in error_of(run=prior.path)
    prior.history_path.unlink()
    assert "no epoch has finished yet" in error_of(run=prior.path)


@pytest.mark.slow
def test_missing_vqvae_or_archive_is_an_error(error_of, linked, trained_prior, tmp_path):
    prior, vqvae = linked
    assert "'pixelcnn'" in error_of("--vqvae", trained_prior)
    environment = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**environment, "archive": str(tmp_path / "gone")})
    message = error_of("--nearest", run=prior.path)
    assert str(tmp_path / "gone") in message
    assert "--data" in message
    shutil.rmtree(vqvae.path)
    assert "--vqvae" in error_of(run=prior.path)


def test_folder_with_unexpected_files_is_an_error_and_not_changed(error_of, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("words")
    assert "chapter.txt" in error_of(out=folder)
    assert "chapter.txt is a file" in error_of(out=folder / "chapter.txt")
    assert (folder / "chapter.txt").read_text() == "words"


def test_a_run_is_not_an_earlier_sampling(error_of, linked):
    for run in linked:
        before = run.model_path.read_bytes()
        assert f"{run.path} holds" in error_of(out=run.path)
        assert run.model_path.read_bytes() == before


@pytest.mark.long
@pytest.mark.slow
def test_an_error_in_a_process_of_its_own_is_one_line(trained_prior, tmp_path):
    ran = python(COMMAND, "--run", trained_prior, "--out", tmp_path / "out", "--top-k", 99)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: `top_k`")
    assert ran.stderr.count("\n") == 1
