import dataclasses

import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, values
from prior_training import (
    CODES,
    CONFIG,
    SUBJECTS,
    TRAINING,
    VARIABLES,
    read_history,
    train_or_resume,
)
from training_runs import contents

from brainslices.data.code_grids import entropy, nats_by_position
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import StopCallback
from brainslices.training.checkpoint import load_checkpoint
from brainslices.training.compat import averaged_variables
from brainslices.training.optimizer import compile_model
from pixelcnn.conditions import add_subjects
from pixelcnn.model import PixelCNN
from pixelcnn.training import build_model, measure_rate, summary

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_loss_decreases_every_epoch_and_falls_below_the_entropy(trained_run):
    path, metrics = trained_run
    columns = read_history(path)
    assert columns["epoch"] == [1, 2, 3]
    for name in ("loss", "val_loss", "nats_per_code", "val_nats_per_code"):
        assert columns[name][2] < columns[name][1] < columns[name][0] < 1.2 * np.log(CODES)
    assert metrics["nats_per_code"] < metrics["entropy"] - 0.1


def test_history_has_a_column_per_metric(trained_run):
    metrics = ("loss", "nats_per_code")
    columns = {"epoch", "learning_rate", *metrics, *(f"val_{name}" for name in metrics)}
    assert set(read_history(trained_run[0])) == columns


def test_metrics_are_those_of_the_best_epoch(trained_run, grids):
    path, metrics = trained_run
    assert read_json(path / "metrics.json") == metrics
    rates = {"nats_per_code", "bits_per_slice", "bits_per_pixel_prior"}
    rates |= {"nats_per_code_by_position"}
    assert set(metrics) == rates | {
        *("split", "epoch", "epochs", "splits", "seconds"),
        *("bits_per_pixel_raw", "entropy"),
        *("nats_per_code_unknown_conditions", "nats_per_code_shuffled_conditions"),
    }
    assert list(metrics["splits"]) == ["train", "validate", "test"]
    assert all(set(split) == rates for split in metrics["splits"].values())
    assert (metrics["split"], metrics["epochs"]) == ("validate", 3)
    scores = read_history(path)["val_nats_per_code"]
    assert metrics["epoch"] == 1 + np.argmin(scores)
    assert metrics["nats_per_code"] == pytest.approx(min(scores), rel=1e-5)
    assert {key: metrics[key] for key in rates} == metrics["splits"]["validate"]
    for split in metrics["splits"].values():
        bits = split["nats_per_code"] / np.log(2) * 20
        assert split["bits_per_slice"] == pytest.approx(bits)
        assert split["bits_per_pixel_prior"] == pytest.approx(bits / (64 * 60))
    assert metrics["bits_per_pixel_raw"] == pytest.approx(3 * 20 / (64 * 60))
    codes = grids.splits["train"].codes
    assert metrics["entropy"] == entropy(codes, CODES)
    for name, split in metrics["splits"].items():
        expected = nats_by_position(grids.splits[name].codes, codes, CODES)
        assert split["nats_per_code_by_position"] == expected
    assert metrics["seconds"] > 0


def test_nats_per_code_are_the_mean_negative_log_probability(trained_run, grids):
    path, metrics = trained_run
    model = PixelCNN.from_run(path)
    for name, codes in grids.splits.items():
        inputs = add_subjects(VARIABLES, codes.positions, SUBJECTS, codes.subjects)
        codes = dataclasses.replace(codes, positions=inputs)
        log_prob = np.asarray(model.log_prob(codes.codes.astype("int32"), inputs))
        assert log_prob.shape == codes.codes.shape
        expected = -log_prob.mean(dtype="float64")
        assert metrics["splits"][name]["nats_per_code"] == pytest.approx(expected, rel=1e-5)
        # Each grid has the same weight, also in an incomplete last batch.
        rate = measure_rate(model, grids, codes, 5)["nats_per_code"]
        assert rate == pytest.approx(expected, rel=1e-5)


def test_configuration_and_environment_record_the_provenance(trained_run, grids):
    config = read_json(trained_run[0] / "config.json")
    assert config["positions"] == np.unique(grids.splits["train"].positions).tolist()
    del config["positions"], config["conditions_hash"]
    assert config == {
        "format_version": FORMAT_VERSION,
        "kind": "pixelcnn",
        "archive_hash": "c" * 64,
        "vqvae_hash": "a" * 64,
        "vqvae_run": "/runs/gone",
        "model": {**dataclasses.asdict(CONFIG), "conditions": ["age"]},
        "training": dataclasses.asdict(TRAINING),
    }
    environment = read_json(trained_run[0] / "environment.json")
    assert (environment["archive_hash"], environment["precision"]) == ("c" * 64, "float32")
    assert {"python", "versions", "backend", "devices", "processor"} < set(environment)


def test_files_and_summary_are_complete(trained_run):
    path, metrics = trained_run
    assert (path / "figures" / "training.png").stat().st_size > 1000
    assert not [item for item in path.rglob(".*") if item.name != ".lock"]
    head, *rows, conditions, last = summary(metrics).splitlines()
    assert head.split() == ["split", "nats/code", "bits/code", "bits/slice", "bits/pixel"]
    assert [row.split()[0] for row in rows] == ["train", "validate", "test"]
    assert rows[1].split()[1] == f"{metrics['nats_per_code']:.4f}"
    assert conditions.startswith("test nats per code: ")
    assert last.startswith(f"best epoch {metrics['epoch']} of 3")


def test_saved_model_has_the_averaged_weights(trained_run, grids):
    """The last epoch is the best, so they are the averages in the last checkpoint."""
    path, metrics = trained_run
    assert metrics["epoch"] == 3
    model = build_model(grids, CONFIG, TRAINING.seed, VARIABLES)
    compile_model(model, TRAINING, steps_per_epoch=5)
    load_checkpoint(Run(path), model)
    averages = values(averaged_variables(model))
    best = PixelCNN.from_run(path)
    assert_bit_equal(values(best.trainable_variables), averages)
    weights = values(model.trainable_variables)
    assert all((one != other).any() for one, other in zip(weights, averages, strict=True))


def test_averaged_weights_match_a_reference(recorded_training):
    path, _, weights = recorded_training
    assert len(weights) == 3 * 5
    averages = weights[0]
    for steps, current in enumerate(weights[1:], start=1):
        momentum = min(TRAINING.average, (1 + steps) / (10 + steps))
        pairs = zip(averages, current, strict=True)
        averages = [momentum * old + (1 - momentum) * new for old, new in pairs]
    best = PixelCNN.from_run(path)
    for weight, expected in zip(values(best.trainable_variables), averages, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_exhausted_patience_stops_the_training_for_good(grids, tmp_path, monkeypatch):
    run, options = Run(tmp_path / "run"), {"epochs": 9, "patience": 2}
    grids = dataclasses.replace(
        grids, splits={name: grids.splits[name] for name in ("train", "validate")}
    )
    scores, evaluate = iter([2.0, 1.5, 1.6, 1.7]), keras.Model.evaluate
    saved, save = [], keras.Model.save

    def evaluate_with_scores(self, *args, **kwargs):
        result = evaluate(self, *args, **kwargs)
        return {**result, "nats_per_code": next(scores, result["nats_per_code"])}

    def save_and_record(self, path):
        saved.append(values(self.trainable_variables))
        save(self, path)

    monkeypatch.setattr(keras.Model, "evaluate", evaluate_with_scores)
    monkeypatch.setattr(keras.Model, "save", save_and_record)
    metrics = train_or_resume(run, grids, **options)
    assert read_history(run.path)["val_nats_per_code"] == [2.0, 1.5, 1.6, 1.7]
    assert (metrics["epoch"], metrics["epochs"], len(saved)) == (2, 4, 2)
    assert list(metrics["splits"]) == ["train", "validate"]
    assert_bit_equal(values(PixelCNN.from_run(run).trainable_variables), saved[1])

    def fail(*_):
        raise AssertionError("a training whose patience is exhausted takes no step")

    monkeypatch.setattr(StopCallback, "on_train_batch_end", fail)
    before = contents(run.path)
    assert train_or_resume(run, grids, **options) == metrics
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv", "metrics.json"):
        assert after[name] == before[name]


def test_run_without_a_finished_epoch_is_rejected(run):
    run.model_path.unlink()
    run.history_path.unlink()
    with pytest.raises(InputError, match="no model.keras"):
        PixelCNN.from_run(run)
