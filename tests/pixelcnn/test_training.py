import csv
import dataclasses
import shutil

import keras
import numpy as np
import pytest
from helpers import (
    ROOT,
    assert_bit_equal,
    python,
    tiny_prior_config,
    tiny_prior_training,
    values,
)
from training_runs import ON_STEP, contents, interrupt_after, saved_arrays, saved_progress

import pixelcnn.training
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, entropy_by_position
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import StopCallback
from brainslices.training.checkpoint import load_checkpoint
from brainslices.training.compat import averaged_variables
from brainslices.training.optimizer import compile_model
from pixelcnn.conditions import Variable, add_subjects
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.training import CodeBatches, build_model, measure_rate, summary, train

GRID, CODES = (4, 5), 8
CONFIG = tiny_prior_config(first_kernel_size=3, attention_layers=1, conditions=("age",))
TRAINING = tiny_prior_training(epochs=3, learning_rate=0.05, average=0.8, variants=2)

# Training subjects are 0_0 to 0_39; every fourth age is unknown.
SUBJECTS = {
    f"{seed}_{number}": {"age": str(40 + number) if number % 4 else ""}
    for seed in range(3)
    for number in range(40)
}
VARIABLES = (Variable("age", 41, 79),)

pytestmark = pytest.mark.usefixtures("fresh_keras")


def chains(count, seed):
    """Predictable grids: with probability 0.9 a code is its left neighbour plus one."""
    rng = np.random.default_rng(seed)
    steps = 1 + (rng.random((count, *GRID)) < 0.1)
    steps[..., 0] = rng.integers(0, CODES, (count, GRID[0]))
    return (np.cumsum(steps, axis=2) % CODES).astype("uint16")


def split(count, seed):
    names = np.array([f"{seed}_{number}" for number in range(count)])
    positions = np.linspace(0.1, 0.9, count, dtype="float32")
    return SplitCodes(chains(count, seed), names, names, positions)


@pytest.fixture(scope="module")
def grids():
    """Code grids without a VQ-VAE: 40 train, 16 validate, 8 test."""
    counts = {"train": 40, "validate": 16, "test": 8}
    return CodeGrids(
        splits={name: split(count, seed) for seed, (name, count) in enumerate(counts.items())},
        variants=np.stack([chains(40, 3), chains(40, 4)]),
        num_embeddings=CODES,
        grid_shape=GRID,
        image_shape=(64, 60),
        vqvae_hash="a" * 64,
        vqvae_run="/runs/gone",
        archive_hash="c" * 64,
    )


@pytest.fixture(scope="module")
def watched(grids, make_once):
    """A run of three epochs, what `train` returned, and the weights after each step."""

    def make(path):
        weights = {}

        def watch(self, batch, logs=None):
            for number, value in enumerate(values(self.model.trainable_variables)):
                weights.setdefault(str(number), []).append(value)
            ON_STEP(self, batch, logs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopCallback, "on_train_batch_end", watch)
            metrics = train(grids, path / "trained", CONFIG, TRAINING, SUBJECTS)
        write_json(path / "returned.json", metrics)
        np.savez(path / "weights.npz", **weights)

    path = make_once("trained_on_chains", make)
    with np.load(path / "weights.npz") as saved:
        weights = list(zip(*saved.values(), strict=True))
    return path / "trained", read_json(path / "returned.json"), weights


@pytest.fixture(scope="module")
def trained(watched):
    """That run and what `train` returned; tests work on copies."""
    return watched[:2]


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained[0], tmp_path / "run"))


def resume(run, grids, config=CONFIG, **changes):
    return train(grids, run.path, config, dataclasses.replace(TRAINING, **changes), SUBJECTS)


def history(path):
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def assert_same_training(first, second):
    """Equal to the last bit: checkpoint, history, model."""
    one, other = saved_arrays(Run(first)), saved_arrays(Run(second))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
    assert history(first) == history(second)
    models = [PixelCNN.from_run(path) for path in (first, second)]
    assert_bit_equal(*(values(model.weights) for model in models))


# What a run holds


def test_rate_falls_with_every_epoch_and_under_the_entropy(trained):
    path, metrics = trained
    columns = history(path)
    assert columns["epoch"] == [1, 2, 3]
    for name in ("loss", "val_loss", "nats_per_code", "val_nats_per_code"):
        assert columns[name][2] < columns[name][1] < columns[name][0] < 1.2 * np.log(CODES)
    assert metrics["nats_per_code"] < metrics["entropy"] - 0.1


def test_history_has_a_column_for_each_value(trained):
    both = ("loss", "nats_per_code")
    columns = {"epoch", "learning_rate", *both, *(f"val_{name}" for name in both)}
    assert set(history(trained[0])) == columns


def test_metrics_are_those_of_the_best_epoch(trained, grids):
    path, metrics = trained
    assert read_json(path / "metrics.json") == metrics
    rates = {"nats_per_code", "bits_per_slice", "bits_per_pixel_prior"}
    assert set(metrics) == rates | {
        *("split", "epoch", "epochs", "splits", "seconds"),
        *("bits_per_pixel_raw", "entropy", "entropy_by_position"),
        *("nats_per_code_unknown_conditions", "nats_per_code_shuffled_conditions"),
    }
    assert list(metrics["splits"]) == ["train", "validate", "test"]
    assert all(set(split) == rates for split in metrics["splits"].values())
    assert (metrics["split"], metrics["epochs"]) == ("validate", 3)
    scores = history(path)["val_nats_per_code"]
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
    assert metrics["entropy_by_position"] == entropy_by_position(codes, CODES)
    assert metrics["seconds"] > 0


def test_loss_is_the_mean_log_probability(trained, grids):
    path, metrics = trained
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


def test_configuration_and_environment_record_the_origin(trained, grids):
    config = read_json(trained[0] / "config.json")
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
    environment = read_json(trained[0] / "environment.json")
    assert (environment["archive_hash"], environment["precision"]) == ("c" * 64, "float32")
    assert {"python", "versions", "backend", "devices", "processor"} < set(environment)


def test_files_and_summary_are_complete(trained):
    path, metrics = trained
    assert (path / "figures" / "training.png").stat().st_size > 1000
    assert not [item for item in path.rglob(".*") if item.name != ".lock"]
    head, *rows, conditions, last = summary(metrics).splitlines()
    assert head.split() == ["split", "nats/code", "bits/code", "bits/slice", "bits/pixel"]
    assert [row.split()[0] for row in rows] == ["train", "validate", "test"]
    assert rows[1].split()[1] == f"{metrics['nats_per_code']:.4f}"
    assert conditions.startswith("test nats per code: ")
    assert last.startswith(f"best epoch {metrics['epoch']} of 3")


def test_model_holds_the_averaged_weights(trained, grids):
    """As its last epoch is the best, they are the averages of the state it ended in."""
    path, metrics = trained
    assert metrics["epoch"] == 3
    model = build_model(grids, CONFIG, TRAINING.seed, VARIABLES)
    compile_model(model, TRAINING, steps_per_epoch=5)
    load_checkpoint(Run(path), model)
    averages = values(averaged_variables(model))
    best = PixelCNN.from_run(path)
    assert_bit_equal(values(best.trainable_variables), averages)
    own = values(model.trainable_variables)
    assert all((one != other).any() for one, other in zip(own, averages, strict=True))


def test_averages_are_those_of_the_weights_after_each_step(watched):
    path, _, weights = watched
    assert len(weights) == 3 * 5
    averages = weights[0]
    for steps, current in enumerate(weights[1:], start=1):
        momentum = min(TRAINING.average, (1 + steps) / (10 + steps))
        pairs = zip(averages, current, strict=True)
        averages = [momentum * old + (1 - momentum) * new for old, new in pairs]
    best = PixelCNN.from_run(path)
    for weight, expected in zip(values(best.trainable_variables), averages, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


# Early stopping


@pytest.mark.long
@pytest.mark.slow
def test_patience_ends_the_training_with_its_best_epoch_and_for_good(grids, tmp_path, monkeypatch):
    run, options = Run(tmp_path / "run"), {"epochs": 9, "patience": 2}
    grids = dataclasses.replace(
        grids, splits={name: grids.splits[name] for name in ("train", "validate")}
    )
    scores, evaluate = iter([2.0, 1.5, 1.6, 1.7]), keras.Model.evaluate
    saved, save = [], keras.Model.save

    def scripted(self, *args, **kwargs):
        result = evaluate(self, *args, **kwargs)
        return {**result, "nats_per_code": next(scores, result["nats_per_code"])}

    def spy(self, path):
        saved.append(values(self.trainable_variables))
        save(self, path)

    monkeypatch.setattr(keras.Model, "evaluate", scripted)
    monkeypatch.setattr(keras.Model, "save", spy)
    metrics = resume(run, grids, **options)
    assert history(run.path)["val_nats_per_code"] == [2.0, 1.5, 1.6, 1.7]
    assert (metrics["epoch"], metrics["epochs"], len(saved)) == (2, 4, 2)
    assert list(metrics["splits"]) == ["train", "validate"]
    assert_bit_equal(values(PixelCNN.from_run(run).trainable_variables), saved[1])

    def fail(*_):
        raise AssertionError("a training whose patience is exhausted takes no step")

    monkeypatch.setattr(StopCallback, "on_train_batch_end", fail)
    before = contents(run.path)
    assert resume(run, grids, **options) == metrics
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv", "metrics.json"):
        assert after[name] == before[name]


# Resuming


@pytest.mark.slow
def test_interrupted_training_equals_an_uninterrupted_one(trained, grids, tmp_path, monkeypatch):
    """Dropout, averages, Adam, schedule, order of grids and variants, hidden conditions resume."""
    interrupt_after(monkeypatch, [(1, 3)])
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="Rerun the same command to resume"):
        resume(run, grids)
    progress = saved_progress(run)
    assert (progress["epoch"], progress["step"]) == (1, 3)
    assert not run.metrics_path.exists()
    resume(run, grids)
    assert_same_training(trained[0], run.path)


def test_names_do_not_depend_on_earlier_models(run, grids, monkeypatch):
    """TensorFlow orders some sums by name: other names would change the last bits."""
    paths, build = [], pixelcnn.training.build_model

    def watch(*arguments):
        model = build(*arguments)
        paths.append([variable.path for variable in model.variables])
        raise InterruptedError

    monkeypatch.setattr(pixelcnn.training, "build_model", watch)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            resume(run, grids)
        for _ in range(9):
            build(grids, CONFIG, 0, VARIABLES)
    assert paths[0] == paths[1]


@pytest.mark.long
@pytest.mark.slow
def test_more_epochs_continue_where_fewer_ended(run, trained, grids):
    metrics = resume(run, grids, epochs=4)
    assert metrics["epochs"] == 4
    earlier = (trained[0] / "history.csv").read_text()
    assert run.history_path.read_text().startswith(earlier)
    assert len(history(run.path)["epoch"]) == 4
    assert read_json(run.config_path)["training"]["epochs"] == 4


def test_other_configuration_is_rejected_and_nothing_changes(run, grids):
    before = contents(run.path)
    with pytest.raises(InputError, match=r"layers=2 \(received: 3\)"):
        resume(run, grids, dataclasses.replace(CONFIG, layers=3))
    with pytest.raises(InputError, match=r"variants=2 \(received: 1\)"):
        resume(run, grids, variants=1)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("field", "flag", "before", "now"),
    [("vqvae_hash", "--vqvae", "aaaaaaaaaaaa", "bbbbbbbbbbbb")]
    + [("archive_hash", "--data", "cccccccccccc", "bbbbbbbbbbbb")],
)
def test_codes_of_another_vqvae_or_archive_are_rejected(run, grids, field, flag, before, now):
    untouched = contents(run.path)
    with pytest.raises(InputError) as caught:
        resume(run, dataclasses.replace(grids, **{field: "b" * 64}))
    assert str(run.path) in str(caught.value)
    assert all(part in str(caught.value) for part in (flag, before, now))
    assert contents(run.path) == untouched


def test_locked_run_is_rejected(run, grids):
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        resume(run, grids)


@pytest.mark.parametrize("missing", ["train", "validate"])
def test_codes_without_a_split_to_train_on_are_rejected(grids, tmp_path, missing):
    rest = {name: split for name, split in grids.splits.items() if name != missing}
    with pytest.raises(InputError, match=f"'{missing}'"):
        resume(Run(tmp_path / "run"), dataclasses.replace(grids, splits=rest))
    assert not any(tmp_path.iterdir())


# Batches


def batch(batches, index):
    (inputs,) = batches[index]
    return inputs


@pytest.fixture(scope="module")
def numbered():
    """A split of 12 slices and 3 variants; the codes encode slice and variant."""
    rows = np.arange(12, dtype="uint16")[:, None, None] * np.ones((1, 2, 2), "uint16")
    names = np.arange(12).astype(str)
    variants = np.stack([rows + 100 * (number + 1) for number in range(3)])
    return SplitCodes(rows, names, names, np.linspace(0, 1, 12, dtype="float32")), variants


def test_grids_are_sampled_from_themselves_and_their_variants(numbered):
    slices, variants = numbered
    counts = np.zeros((4, 12), int)
    for epoch in range(60):
        batches = CodeBatches(slices, 5, seed=1, variants=variants, epoch=epoch)
        assert len(batches) == 2
        for index in range(2):
            inputs = batch(batches, index)
            assert inputs["codes"].dtype == np.int32
            assert inputs["codes"].shape == (5, 2, 2)
            variant, row = np.divmod(inputs["codes"][:, 0, 0], 100)
            assert (inputs["codes"] == inputs["codes"][:, :1, :1]).all()
            np.testing.assert_array_equal(inputs["position"], slices.positions[row])
            assert len(np.unique(row)) == 5
            np.add.at(counts, (variant, row), 1)
    assert (counts.sum(axis=0) > 35).all()
    np.testing.assert_allclose(counts.sum(axis=1), 150, atol=45)  # four standard deviations


def test_batch_depends_on_seed_epoch_and_step_alone(numbered):
    slices, variants = numbered
    whole = CodeBatches(slices, 3, seed=1, variants=variants, epoch=2)
    rest = CodeBatches(slices, 3, seed=1, variants=variants, epoch=2, first_step=2)
    assert (len(whole), len(rest)) == (4, 2)
    for one, other in ((2, 0), (3, 1)):
        for key in ("codes", "position"):
            np.testing.assert_array_equal(batch(whole, one)[key], batch(rest, other)[key])
    for changes in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        others = CodeBatches(slices, 3, variants=variants, **changes)
        codes = [
            np.concatenate([batch(batches, step)["codes"] for step in range(4)])
            for batches in (whole, others)
        ]
        assert (codes[0] != codes[1]).any()


def test_without_a_seed_the_grids_keep_their_order(numbered):
    slices, variants = numbered
    batches = CodeBatches(slices, 5, variants=variants)
    codes = np.concatenate([batch(batches, index)["codes"] for index in range(3)])
    np.testing.assert_array_equal(codes, slices.codes)


def test_without_variants_the_grids_are_not_replaced(numbered):
    slices, _ = numbered
    batches = CodeBatches(slices, 12, seed=1)
    assert batch(batches, 0)["codes"].max() < 100


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stage_declares_its_batches_and_samples(grids, monkeypatch, count):
    stages = []
    monkeypatch.setattr(
        pixelcnn.training, "run_training", lambda run, stage, training: stages.append(stage)
    )
    resume(Run("unused"), grids, variants=count)
    (stage,) = stages
    assert tuple(stage.sample_counts) == (40, 16)
    _, batches, validation = stage.prepare(devices=1, shard=(0, 1))
    np.testing.assert_array_equal(batches.variants, grids.variants[:count])
    for given, name, seed in ((batches, "train", TRAINING.seed), (validation, "validate", None)):
        assert given.seed == seed
        np.testing.assert_array_equal(given.split.codes, grids.splits[name].codes)
        np.testing.assert_array_equal(given.split.positions[:, 0], grids.splits[name].positions)


def test_more_variants_than_the_grids_have_are_rejected(grids):
    with pytest.raises(InputError, match=r"`variants` must be at most 2.*variants=3"):
        resume(Run("unused"), grids, variants=3)


def test_run_without_a_finished_epoch_has_no_prior(run):
    run.model_path.unlink()
    run.history_path.unlink()
    with pytest.raises(InputError, match="no model.keras"):
        PixelCNN.from_run(run)


# JAX, in a process of its own

JAX = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
sys.modules["tensorflow_probability"] = None
sys.path[:0] = [{tests!r} + "/pixelcnn", {tests!r} + "/support"]
import pathlib
import keras, numpy as np, pytest
import test_training as tests
from brainslices.runs.run import Run
assert keras.backend.backend() == "jax"
here = pathlib.Path({here!r})
grids = tests.CodeGrids.load(here / "codes.npz")
patch = pytest.MonkeyPatch()
tests.resume(Run(here / "whole"), grids)
tests.interrupt_after(patch, [(1, 3)])
with pytest.raises(KeyboardInterrupt):
    tests.resume(Run(here / "cut"), grids)
tests.resume(Run(here / "cut"), grids)
tests.assert_same_training(here / "whole", here / "cut")
own = tests.sampled_from(here / "whole", "own")
np.savez(here / "sampled.npz", **tests.sampled_from({run!r}), **own)
"""


def sampled_from(path, name="sampled"):
    """Codes and log-probabilities that a run's prior samples, by name."""
    model = PixelCNN.from_run(path)
    inputs = model.with_conditions(np.linspace(0.1, 0.9, 6, dtype="float32"), {"age": 60})
    sampled = Sampler(model)(inputs, uniform_noise(0, range(6), GRID))
    return {f"{name}_{key}": value for key, value in sampled.items()}


@pytest.mark.slow
def test_jax_trains_resumes_and_samples_alike(trained, grids, tmp_path):
    pytest.importorskip("jax")
    grids.save(tmp_path / "codes.npz")
    code = JAX.format(tests=str(ROOT / "tests"), here=str(tmp_path), run=str(trained[0]))
    ran = python("-c", code, timeout=500, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    nats = history(tmp_path / "whole")["val_nats_per_code"]
    assert nats[2] < nats[0]
    expected = sampled_from(trained[0])
    with np.load(tmp_path / "sampled.npz") as sampled:
        np.testing.assert_array_equal(sampled["sampled_codes"], expected["sampled_codes"])
        np.testing.assert_allclose(
            sampled["sampled_log_prob"], expected["sampled_log_prob"], atol=1e-4
        )
        assert sampled["own_codes"].min() >= 0
        assert sampled["own_codes"].max() < CODES
        assert np.isfinite(sampled["own_log_prob"]).all()
