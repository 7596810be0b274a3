import csv
import dataclasses
import json
import resource
import shutil

import keras
import numpy as np
import pytest
from helpers import (
    SCRIPT,
    assert_bit_equal,
    flags,
    python,
    start,
    tiny_config,
    tiny_training,
)

from brainslices.data.archive_writer import write_archive
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION, Run
from vqvae.model import VQVAE
from vqvae.training import GOAL, build_model, train

CONFIG = tiny_config(encoder_blocks=0, decoder_blocks=0)
TRAINING = tiny_training(schedule="constant", warmup_steps=0)


@pytest.fixture(autouse=True)
def fresh_keras():
    yield
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def trained(phantom_archive, tmp_path_factory):
    """A run of two epochs and what `train` returned; tests work on copies."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    return path, train(phantom_archive.path, path, CONFIG, TRAINING)


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained[0], tmp_path / "run"))


def contents(path):
    """Bytes of every file of a run that a refused training must leave alone."""
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file() and item.name not in (".lock", "environment.json")
    }


def go_on(run, archive, config=CONFIG, **changes):
    return train(archive.path, run.path, config, dataclasses.replace(TRAINING, **changes))


@pytest.mark.parametrize("content", [b"", b"torn", "another"])
def test_mean_image_that_is_damaged_or_anothers_is_written_anew(run, phantom_archive, content):
    mean = np.load(run.mean_image_path)
    if content == "another":
        np.save(run.mean_image_path, 1 - mean)
    else:
        run.mean_image_path.write_bytes(content)
    go_on(run, phantom_archive)
    np.testing.assert_array_equal(np.load(run.mean_image_path), mean)


# What a run holds


def test_metrics_are_those_of_the_best_epoch(trained):
    path, metrics = trained
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row[GOAL[0]]))
    assert read_json(path / "metrics.json") == metrics
    assert set(metrics) == {
        *("split", "epoch", "epochs", "loss", "reconstruction_loss", "quantizer_loss"),
        *("ssim", "ssim_foreground", "perplexity", "codebook_usage"),
        *("bits_per_pixel_raw", "train_codebook_usage", "seconds"),
    }
    assert (metrics["split"], metrics["epochs"]) == ("validate", 2)
    assert metrics["epoch"] == int(best["epoch"])
    for key in ("ssim", "ssim_foreground", "loss", "perplexity", "codebook_usage"):
        assert metrics[key] == float(best[f"val_{key}"])
    assert metrics["train_codebook_usage"] == float(best["codebook_usage"])
    assert metrics["seconds"] > 0


def test_history_has_a_column_for_each_value(trained):
    with (trained[0] / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    both = ("loss", "reconstruction_loss", "quantizer_loss", "perplexity", "codebook_usage")
    scores = {"val_ssim", "val_ssim_foreground"}
    assert set(rows[0]) == {
        "epoch",
        "learning_rate",
        *both,
        *(f"val_{key}" for key in both),
        *scores,
    }
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_configuration_and_environment_are_written(trained, phantom_archive):
    path, _ = trained
    config = read_json(path / "config.json")
    assert config["format_version"] == FORMAT_VERSION
    assert (config["kind"], config["archive_hash"]) == ("vqvae", phantom_archive.content_hash)
    assert config["model"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert config["training"] == dataclasses.asdict(TRAINING)
    environment = read_json(path / "environment.json")
    assert environment["archive_hash"] == phantom_archive.content_hash
    assert (environment["precision"], environment["seed"]) == ("float32", 0)
    assert environment["precision_reason"] == "as asked"
    assert {"python", "versions", "backend", "devices", "processor", "cores"} < set(environment)


def test_figure_and_model_are_there_and_nothing_half_written(trained, phantom_archive):
    path, metrics = trained
    assert (path / "figures" / "training.png").stat().st_size > 1000
    assert not [item for item in path.rglob(".*") if item.name != ".lock"]
    model = keras.saving.load_model(path / "model.keras")
    assert model.crop == dataclasses.astuple(phantom_archive.crop)
    images = phantom_archive.load(phantom_archive.indices("test"))
    assert np.asarray(model.reconstruct(images)).shape == images.shape


def test_model_holds_the_statistics_of_the_training_crops(phantom_archive):
    rows = phantom_archive.indices("train")
    model = build_model(phantom_archive, rows, CONFIG, seed=0)
    crops = phantom_archive.crop.cut(phantom_archive.load(rows)).astype("float64")
    np.testing.assert_allclose((model.mean, model.std), (crops.mean(), crops.std()), rtol=1e-5)


def test_untrained_models_follow_the_seed(phantom_archive):
    rows = phantom_archive.indices("train")
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(build_model(phantom_archive, rows, CONFIG, seed).get_weights())
    assert_bit_equal(weights[0], weights[1])
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))


# Going on


def test_finished_run_asked_again_gives_the_same_metrics(run, trained, phantom_archive):
    before = contents(run.path)
    assert go_on(run, phantom_archive) == trained[1]
    after = contents(run.path)
    for name in ("model.keras", "state.npz", "history.csv", "metrics.json", "config.json"):
        assert after[name] == before[name]


def test_more_epochs_go_on_where_fewer_ended(run, trained, phantom_archive):
    metrics = go_on(run, phantom_archive, epochs=3)
    assert metrics["epochs"] == 3
    assert metrics["seconds"] > trained[1]["seconds"]
    earlier = (trained[0] / "history.csv").read_text()
    assert run.history_path.read_text().startswith(earlier)
    assert run.history_path.read_text().count("\n") == earlier.count("\n") + 1


@pytest.mark.parametrize(
    ("model", "training", "named"),
    [
        ({"num_embeddings": 16}, {}, "num_embeddings=32 (asked: 16)"),
        ({"channels": (8, 8)}, {}, "channels=(8, 16) (asked: (8, 8))"),
        ({}, {"learning_rate": 0.5}, "(asked: 0.5)"),
        ({}, {"epochs": 1}, "epochs=2 (asked: 1)"),
        ({}, {"seed": 3, "mirror": True}, "seed=0 (asked: 3); mirror=False (asked: True)"),
    ],
)
def test_other_configuration_is_refused_by_field(run, phantom_archive, model, training, named):
    before = contents(run.path)
    with pytest.raises(InputError) as caught:
        go_on(run, phantom_archive, dataclasses.replace(CONFIG, **model), **training)
    assert f"Run {run.path} was begun with" in str(caught.value)
    assert named in str(caught.value)
    assert contents(run.path) == before


def test_another_archive_is_refused(run, phantom_archive, tmp_path):
    def darker():
        for record, image in zip(phantom_archive.index, phantom_archive.images, strict=True):
            yield record, image // 2

    other = write_archive(tmp_path / "other", darker(), intensity_rule="phantom")
    before = contents(run.path)
    with pytest.raises(InputError) as caught:
        go_on(run, other)
    assert "was trained on another archive" in str(caught.value)
    assert phantom_archive.content_hash[:12] in str(caught.value)
    assert other.content_hash[:12] in str(caught.value)
    assert contents(run.path) == before


def test_locked_run_is_refused(run, phantom_archive):
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        go_on(run, phantom_archive)


def test_folder_with_other_things_is_refused_and_left_alone(tmp_path, phantom_archive):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("words")
    with pytest.raises(InputError) as caught:
        go_on(Run(folder), phantom_archive)
    assert f"Run folder {folder} holds other things (chapter.txt)" in str(caught.value)
    assert contents(folder) == {"chapter.txt": b"words"}


def test_damaged_state_is_refused_and_left_alone(run, phantom_archive):
    run.previous_checkpoint_path.unlink()
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    before = contents(run.path)
    with pytest.raises(InputError, match="state.npz is damaged"):
        go_on(run, phantom_archive)
    assert contents(run.path) == before


def test_state_of_another_architecture_is_refused_and_left_alone(run, phantom_archive):
    config = read_json(run.config_path)
    config["model"]["embedding_dim"] = 8
    write_json(run.config_path, config)
    before = contents(run.path)
    other = dataclasses.replace(CONFIG, embedding_dim=8)
    with pytest.raises(InputError, match="holds the state of another architecture"):
        go_on(run, phantom_archive, other)
    assert contents(run.path) == before


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 1, "kind": "vqvae"}'])
def test_damaged_configuration_is_refused(run, phantom_archive, text):
    run.config_path.write_text(text)
    with pytest.raises(InputError, match=str(run.path)):
        go_on(run, phantom_archive)


def test_loss_that_is_no_number_keeps_the_last_good_state(run, phantom_archive, monkeypatch):
    before = contents(run.path)
    good = VQVAE.compute_loss

    def spoilt(self, *arguments, **options):
        return good(self, *arguments, **options) * float("nan")

    monkeypatch.setattr(VQVAE, "compute_loss", spoilt)
    with pytest.raises(InputError, match="not finite, as seen in epoch 3"):
        go_on(run, phantom_archive, epochs=3)
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv"):
        assert after[name] == before[name]


def test_archive_of_few_latents_starts_without_kmeans(phantom_archive, tmp_path):
    """More codes than latents: nothing to cluster, the codes start at random."""
    config = dataclasses.replace(
        CONFIG, num_embeddings=2**14, channels=(4, 4, 4), magnification=0.25
    )
    metrics = go_on(Run(tmp_path / "run"), phantom_archive, config, epochs=1)
    assert 0 < metrics["codebook_usage"] < 1


# The command, in processes of its own

LONG = dataclasses.replace(TRAINING, epochs=6, batch_size=2, mirror=True)


def words(archive, run, training=LONG):
    return [SCRIPT, "--data", archive.path, "--run", run, *flags(CONFIG), *flags(training)]


def progress_of(run):
    with np.load(run / "state.npz") as file:
        return json.loads(file["progress"].item())


@pytest.mark.long
@pytest.mark.slow
def test_full_disk_is_one_message_and_the_state_stays(run, phantom_archive):
    before = contents(run.path)
    limit = len(before["state.npz"]) // 2

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    longer = dataclasses.replace(TRAINING, epochs=3)
    process = start(*words(phantom_archive, run.path, longer), preexec_fn=small_files)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv"):
        assert after[name] == before[name]
    assert not [item for item in run.path.rglob(".*") if item.name != ".lock"]
    ran = python(*words(phantom_archive, run.path, longer), timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert progress_of(run.path)["epoch"] == 3


@pytest.mark.slow
def test_damaged_state_is_status_2_without_traceback(run, phantom_archive):
    run.previous_checkpoint_path.unlink()
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    ran = python(*words(phantom_archive, run.path, TRAINING))
    assert ran.returncode == 2
    assert f"error: {run.checkpoint_path} is damaged" in ran.stderr
    assert "Traceback" not in ran.stderr


JAX = """
import sys
if {block}:
    sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
import dataclasses, json, pathlib
import keras, numpy as np
from brainslices.data.archive import SliceArchive
from brainslices.config import from_dict
from vqvae import VQVAE, VQVAEConfig, train
from vqvae.config import VQVAETraining
assert keras.backend.backend() == "jax"
"""


@pytest.mark.slow
def test_run_written_under_tensorflow_reconstructs_under_jax(trained, phantom_archive, tmp_path):
    pytest.importorskip("jax")
    rows = phantom_archive.indices("validate")[:4]
    code = JAX.format(block=True) + (
        f"archive = SliceArchive.open({str(phantom_archive.path)!r})\n"
        f"model = keras.saving.load_model({str(trained[0] / 'model.keras')!r})\n"
        f"images = archive.load(np.array({rows.tolist()}))\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, np.asarray(model.reconstruct(images)))\n"
    )
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    model = keras.saving.load_model(trained[0] / "model.keras")
    expected = model.reconstruct(phantom_archive.load(rows))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


@pytest.mark.slow
def test_training_and_going_on_under_jax(phantom_archive, tmp_path):
    pytest.importorskip("jax")
    parts = {"model": dataclasses.asdict(CONFIG), "training": dataclasses.asdict(TRAINING)}
    (tmp_path / "config.json").write_text(json.dumps(parts))
    code = JAX.format(block=True) + (
        f"parts = json.loads(pathlib.Path({str(tmp_path / 'config.json')!r}).read_text())\n"
        "model = from_dict(VQVAEConfig, parts['model'], 'here')\n"
        "training = from_dict(VQVAETraining, parts['training'], 'here')\n"
        "for epochs in (2, 3):\n"
        "    longer = dataclasses.replace(training, epochs=epochs)\n"
        f"    train(pathlib.Path({str(phantom_archive.path)!r}),"
        f" pathlib.Path({str(tmp_path / 'run')!r}), model, longer)\n"
    )
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert "ssim" not in rows[0]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
