import dataclasses
import json
import resource
import shutil

import keras
import numpy as np
import pytest
from helpers import (
    ROOT,
    SCRIPT,
    assert_bit_equal,
    csv_rows,
    flags,
    python,
    run_command,
    start,
    tiny_config,
    tiny_training,
)
from training_runs import contents, saved_progress

import vqvae.training
from brainslices.data.archive import SliceArchive
from brainslices.data.archive_writer import write_archive
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import floor_scores, mean_image
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION, Run
from vqvae.training import OBJECTIVE, _write_mean_image, build_model, train

# Those of the session's run `trained_vqvae`.
CONFIG = tiny_config(magnification=1.0, encoder_blocks=0, decoder_blocks=0)
TRAINING = tiny_training(epochs=1, schedule="constant", warmup_steps=0)


pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture
def run(trained_vqvae, tmp_path):
    return Run(shutil.copytree(trained_vqvae, tmp_path / "run"))


def resume(run, archive, config=CONFIG, **changes):
    return train(archive.path, run.path, config, dataclasses.replace(TRAINING, **changes))


@pytest.mark.parametrize("content", [b"torn", "another"])
def test_mean_image_is_rewritten_if_it_is_corrupt_or_of_another_archive(
    tmp_path, phantom_archive, content
):
    run = Run(tmp_path)
    for _ in range(2):
        _write_mean_image(run, phantom_archive)
        written = np.load(run.mean_image_path)
        np.testing.assert_array_equal(written, mean_image(phantom_archive))
        if content == "another":
            np.save(run.mean_image_path, 1 - written)
        else:
            run.mean_image_path.write_bytes(content)


# What a run holds


def check_metrics(run, epochs):
    """The metrics are those of the best of a run's epochs."""
    metrics, rows = read_json(run.metrics_path), csv_rows(run.history_path)
    best = max(rows, key=lambda row: float(row[OBJECTIVE.monitor]))
    assert set(metrics) == {
        *("split", "epoch", "epochs", "loss", "reconstruction_loss", "quantizer_loss"),
        *("ssim", "ssim_foreground", "perplexity", "codebook_usage"),
        *("bits_per_pixel_raw", "train_codebook_usage", "seconds"),
        "floor_mean_image",
    }
    assert (metrics["split"], metrics["epochs"]) == ("validate", epochs)
    assert metrics["epoch"] == int(best["epoch"])
    for key in ("ssim", "ssim_foreground", "loss", "perplexity", "codebook_usage"):
        assert metrics[key] == float(best[f"val_{key}"])
    assert metrics["train_codebook_usage"] == float(best["codebook_usage"])
    assert metrics["seconds"] > 0


def test_metrics_are_those_of_the_best_epoch(trained_vqvae):
    check_metrics(Run(trained_vqvae), epochs=1)


def test_metrics_hold_the_scores_of_the_mean_image(trained_vqvae, phantom_archive):
    floor = read_json(Run(trained_vqvae).metrics_path)["floor_mean_image"]
    originals = phantom_archive.load(phantom_archive.indices("validate"))[..., 0]
    expected = floor_scores(originals, mean_image(phantom_archive))["floor_mean_image"]
    for name, values in expected.items():
        assert floor[name] == pytest.approx(np.nanmean(values))


def test_history_has_a_column_for_each_value(trained_vqvae):
    rows = csv_rows(Run(trained_vqvae).history_path)
    both = ("loss", "reconstruction_loss", "quantizer_loss", "perplexity", "codebook_usage")
    scores = {"val_ssim", "val_ssim_foreground"}
    assert set(rows[0]) == {
        "epoch",
        "learning_rate",
        *both,
        *(f"val_{key}" for key in both),
        *scores,
    }
    assert [row["epoch"] for row in rows] == ["1"]


def test_configuration_and_environment_are_written(trained_vqvae, phantom_archive):
    path = trained_vqvae
    config = read_json(path / "config.json")
    assert config["format_version"] == FORMAT_VERSION
    assert (config["kind"], config["archive_hash"]) == ("vqvae", phantom_archive.content_hash)
    assert config["model"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert config["training"] == dataclasses.asdict(TRAINING)
    environment = read_json(path / "environment.json")
    assert environment["archive_hash"] == phantom_archive.content_hash
    assert (environment["precision"], environment["seed"]) == ("float32", 0)
    assert environment["precision_reason"] == "as requested"
    assert {"python", "versions", "backend", "devices", "processor", "cores"} < set(environment)


def test_figure_logs_and_model_are_written_and_no_partial_file(trained_vqvae, phantom_archive):
    path = trained_vqvae
    assert (path / "figures" / "training.png").stat().st_size > 1000
    assert [*(path / "logs").rglob("events*")]
    assert not [item for item in path.rglob(".*") if item.name != ".lock"]
    model = keras.saving.load_model(path / "model.keras")
    assert model.crop == dataclasses.astuple(phantom_archive.crop)
    images = phantom_archive.load(phantom_archive.indices("test"))
    assert np.asarray(model.reconstruct(images)).shape == images.shape


def test_model_holds_the_statistics_of_the_training_crops(phantom_archive, monkeypatch):
    monkeypatch.setattr(vqvae.training, "STATISTICS_CHUNK", 7)
    rows = phantom_archive.indices("train")
    model = build_model(phantom_archive, rows, CONFIG, seed=0)
    crops = phantom_archive.crop.cut(phantom_archive.load(rows)).astype("float64")
    np.testing.assert_allclose((model.mean, model.std), (crops.mean(), crops.std()), rtol=1e-5)


def test_constant_training_slices_are_refused(phantom_archive, monkeypatch):
    grey = np.full(phantom_archive.images.shape, 7, "uint8")
    monkeypatch.setattr(SliceArchive, "images", grey)
    with pytest.raises(InputError, match="constant. Received: grey level 7"):
        build_model(phantom_archive, phantom_archive.indices("train"), CONFIG, seed=0)


def test_untrained_models_follow_the_seed(phantom_archive):
    rows = phantom_archive.indices("train")
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(build_model(phantom_archive, rows, CONFIG, seed).get_weights())
    assert_bit_equal(weights[0], weights[1])
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))


# Resuming


def test_finished_run_returns_the_same_metrics(run, phantom_archive):
    before = contents(run.path)
    assert resume(run, phantom_archive) == read_json(run.metrics_path)
    after = contents(run.path)
    for name in ("model.keras", "state.npz", "history.csv", "metrics.json", "config.json"):
        assert after[name] == before[name]


@pytest.mark.slow
@pytest.mark.long
def test_more_epochs_continue_where_fewer_ended(run, phantom_archive):
    earlier, seconds = run.history_path.read_text(), read_json(run.metrics_path)["seconds"]
    metrics = resume(run, phantom_archive, epochs=3)
    assert read_json(run.metrics_path) == metrics
    assert metrics["seconds"] > seconds
    assert run.history_path.read_text().startswith(earlier)
    assert [row["epoch"] for row in csv_rows(run.history_path)] == ["1", "2", "3"]
    check_metrics(run, epochs=3)


def test_other_configuration_is_rejected_and_nothing_changes(run, phantom_archive):
    before = contents(run.path)
    with pytest.raises(InputError, match=r"num_embeddings=32 \(received: 16\)"):
        resume(run, phantom_archive, dataclasses.replace(CONFIG, num_embeddings=16))
    with pytest.raises(InputError, match=r"mirror=False \(received: True\)"):
        resume(run, phantom_archive, mirror=True)
    assert contents(run.path) == before


def test_another_archive_is_rejected(run, phantom_archive, tmp_path):
    def darker():
        for record, image in zip(phantom_archive.index, phantom_archive.images, strict=True):
            yield record, image // 2

    other = write_archive(tmp_path / "other", darker(), intensity_rule="phantom")
    before = contents(run.path)
    with pytest.raises(InputError) as caught:
        resume(run, other)
    assert "--data" in str(caught.value)
    assert phantom_archive.content_hash[:12] in str(caught.value)
    assert other.content_hash[:12] in str(caught.value)
    assert contents(run.path) == before


def test_locked_run_is_rejected(run, phantom_archive):
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        resume(run, phantom_archive)


def test_folder_with_other_files_is_rejected_and_left_alone(tmp_path, phantom_archive):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("words")
    with pytest.raises(InputError) as caught:
        resume(Run(folder), phantom_archive)
    assert str(folder) in str(caught.value)
    assert "chapter.txt" in str(caught.value)
    assert contents(folder) == {"chapter.txt": b"words"}


def test_checkpoint_of_another_architecture_is_rejected_and_left_alone(run, phantom_archive):
    config = read_json(run.config_path)
    config["model"]["embedding_dim"] = 8
    write_json(run.config_path, config)
    before = contents(run.path)
    other = dataclasses.replace(CONFIG, embedding_dim=8)
    with pytest.raises(InputError, match="another architecture"):
        resume(run, phantom_archive, other)
    assert contents(run.path) == before


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 1, "kind": "vqvae"}'])
def test_corrupt_configuration_is_rejected(run, phantom_archive, text):
    run.config_path.write_text(text)
    with pytest.raises(InputError, match=str(run.path)):
        resume(run, phantom_archive)


@pytest.mark.slow
def test_archive_of_few_latents_starts_without_kmeans(phantom_archive, tmp_path):
    """More codes than latents: k-means is impossible, the codes start at random."""
    config = dataclasses.replace(
        CONFIG, num_embeddings=2**14, channels=(4, 4, 4), magnification=0.25
    )
    metrics = resume(Run(tmp_path / "run"), phantom_archive, config, epochs=1)
    assert 0 < metrics["codebook_usage"] < 1


@pytest.mark.slow
def test_new_run_starts_with_kmeans_and_a_finished_one_does_not(
    run, phantom_archive, tmp_path, monkeypatch
):
    received = []

    def record(self, latents):
        received.append(latents.shape)
        raise InterruptedError

    monkeypatch.setattr("vqvae.quantizer.VectorQuantizer.initialize_codebook", record)
    with pytest.raises(InterruptedError):
        resume(Run(tmp_path / "new"), phantom_archive)
    assert received == [(40 * CONFIG.num_embeddings, CONFIG.embedding_dim)]
    resume(run, phantom_archive)
    assert len(received) == 1


# The command, in processes of its own


def arguments(archive, run, training=TRAINING):
    return [SCRIPT, "--data", archive.path, "--run", run, *flags(CONFIG), *flags(training)]


@pytest.mark.long
@pytest.mark.slow
def test_full_disk_is_one_message_and_the_checkpoint_stays(run, phantom_archive):
    before = contents(run.path)
    limit = len(before["state.npz"]) // 2

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    longer = dataclasses.replace(TRAINING, epochs=2)
    process = start(*arguments(phantom_archive, run.path, longer), preexec_fn=small_files)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv"):
        assert after[name] == before[name]
    assert not [item for item in run.path.rglob(".*") if item.name != ".lock"]
    ran = python(*arguments(phantom_archive, run.path, longer), timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert saved_progress(run)["epoch"] == 2


@pytest.mark.slow
def test_corrupt_checkpoint_is_status_2_and_left_alone(run, phantom_archive, capsys):
    run.previous_checkpoint_path.unlink()
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    before = contents(run.path)
    assert run_command(*arguments(phantom_archive, run.path)) == 2
    err = capsys.readouterr().err
    assert f"error: {run.checkpoint_path} is not a readable checkpoint" in err
    assert "Traceback" not in err
    assert contents(run.path) == before


JAX = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
sys.path[:0] = [{tests!r} + "/vqvae", {tests!r} + "/support"]
import keras, numpy as np
import test_training as tests
from brainslices.data.archive import SliceArchive
from brainslices.runs.run import Run
assert keras.backend.backend() == "jax"
archive = SliceArchive.open({archive!r})
model = keras.saving.load_model({model!r})
np.save({out!r} + "/out.npy", np.asarray(model.reconstruct(archive.load(np.array({rows})))))
for epochs in (2, 3):
    tests.resume(Run({out!r} + "/run"), archive, epochs=epochs)
"""


@pytest.mark.slow
def test_jax_loads_a_run_of_tensorflow_and_trains(trained_vqvae, phantom_archive, tmp_path):
    pytest.importorskip("jax")
    rows = phantom_archive.indices("validate")[:4]
    code = JAX.format(
        tests=str(ROOT / "tests"),
        archive=str(phantom_archive.path),
        model=str(trained_vqvae / "model.keras"),
        rows=rows.tolist(),
        out=str(tmp_path),
    )
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    model = keras.saving.load_model(trained_vqvae / "model.keras")
    expected = model.reconstruct(phantom_archive.load(rows))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)
    rows = csv_rows(tmp_path / "run" / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert "ssim" not in rows[0]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
