import csv
import dataclasses
import json
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
from training_runs import contents, interrupts

import pixelcnn.training
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, entropy_by_position
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import CheckpointCallback
from brainslices.training.checkpoint import load_checkpoint
from brainslices.training.optimizer import compile_model
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.training import (
    CodeBatches,
    build_model,
    cost,
    summary,
    train,
)

GRID, CODES = (4, 5), 8
CONFIG = tiny_prior_config(first_kernel_size=3)
TRAINING = tiny_prior_training(epochs=3, learning_rate=0.02, average=0.8, variants=2)

pytestmark = pytest.mark.usefixtures("fresh_keras")


def chains(count, seed):
    """Grids to be learned: a code is nearly always the one on its left plus one."""
    chance = np.random.default_rng(seed)
    steps = 1 + (chance.random((count, *GRID)) < 0.1)
    steps[..., 0] = chance.integers(0, CODES, (count, GRID[0]))
    return (np.cumsum(steps, axis=2) % CODES).astype("uint16")


def split(count, seed):
    names = np.array([f"{seed}_{number}" for number in range(count)])
    positions = np.linspace(0.1, 0.9, count, dtype="float32")
    return SplitCodes(chains(count, seed), names, names, positions)


@pytest.fixture(scope="module")
def grids():
    """Code grids of no VQ-VAE: 40 train, 16 validate, 8 test."""
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
def watched(grids, tmp_path_factory):
    """A run of three epochs, what `train` returned, and the weights after each step."""
    path, seen = tmp_path_factory.mktemp("runs") / "trained", []
    on_step = CheckpointCallback.on_train_batch_end

    def watch(self, batch, logs=None):
        seen.append(values(self.model.trainable_variables))
        on_step(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointCallback, "on_train_batch_end", watch)
        return path, train(grids, path, CONFIG, TRAINING), seen


@pytest.fixture(scope="module")
def trained(watched):
    """That run and what `train` returned; tests work on copies."""
    return watched[:2]


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained[0], tmp_path / "run"))


def go_on(run, grids, config=CONFIG, **changes):
    return train(grids, run.path, config, dataclasses.replace(TRAINING, **changes))


def history(path):
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def saved(path):
    with np.load(path / "state.npz") as file:
        return {key: file[key] for key in file.files}


def assert_same_training(first, second):
    """Equal to the last bit: state, history, model."""
    one, other = saved(first), saved(second)
    stories = [json.loads(each.pop("progress").item()) for each in (one, other)]
    assert [(each["epoch"], each["step"]) for each in stories] == [(3, 0)] * 2
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
    assert history(first) == history(second)
    models = [PixelCNN.from_run(Run(path)) for path in (first, second)]
    assert_bit_equal(*(values(model.weights) for model in models))


# What a run holds


def test_cost_falls_with_every_epoch_and_under_the_entropy(trained):
    path, metrics = trained
    told = history(path)
    assert told["epoch"] == [1, 2, 3]
    for name in ("loss", "val_loss", "nats_per_code", "val_nats_per_code"):
        assert told[name][2] < told[name][1] < told[name][0] < 1.2 * np.log(CODES)
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
    }
    assert list(metrics["splits"]) == ["train", "validate", "test"]
    assert all(set(each) == rates for each in metrics["splits"].values())
    assert (metrics["split"], metrics["epochs"]) == ("validate", 3)
    scores = history(path)["val_nats_per_code"]
    assert metrics["epoch"] == 1 + np.argmin(scores)
    assert metrics["nats_per_code"] == pytest.approx(min(scores), rel=1e-5)
    assert {key: metrics[key] for key in rates} == metrics["splits"]["validate"]
    for each in metrics["splits"].values():
        bits = each["nats_per_code"] / np.log(2) * 20
        assert each["bits_per_slice"] == pytest.approx(bits)
        assert each["bits_per_pixel_prior"] == pytest.approx(bits / (64 * 60))
    assert metrics["bits_per_pixel_raw"] == pytest.approx(3 * 20 / (64 * 60))
    codes = grids.splits["train"].codes
    assert metrics["entropy"] == entropy(codes, CODES)
    assert metrics["entropy_by_position"] == entropy_by_position(codes, CODES)
    assert metrics["seconds"] > 0


def test_loss_is_the_mean_log_probability(trained, grids):
    path, metrics = trained
    model = PixelCNN.from_run(Run(path))
    for name, codes in grids.splits.items():
        log_prob = np.asarray(model.log_prob(codes.codes.astype("int32"), codes.positions))
        assert log_prob.shape == codes.codes.shape
        expected = -log_prob.mean(dtype="float64")
        assert metrics["splits"][name]["nats_per_code"] == pytest.approx(expected, rel=1e-5)
        # Batches that do not divide the split weigh each grid the same.
        assert cost(model, grids, codes, 5)["nats_per_code"] == pytest.approx(expected, rel=1e-5)


def test_configuration_and_environment_tell_what_it_was_made_from(trained, grids):
    config = read_json(trained[0] / "config.json")
    assert config["positions"] == np.unique(grids.splits["train"].positions).tolist()
    del config["positions"]
    assert config == {
        "format_version": FORMAT_VERSION,
        "kind": "pixelcnn",
        "archive_hash": "c" * 64,
        "vqvae_hash": "a" * 64,
        "vqvae_run": "/runs/gone",
        "model": dataclasses.asdict(CONFIG),
        "training": dataclasses.asdict(TRAINING),
    }
    environment = read_json(trained[0] / "environment.json")
    assert (environment["archive_hash"], environment["precision"]) == ("c" * 64, "float32")
    assert {"python", "versions", "backend", "devices", "processor"} < set(environment)


def test_files_are_there_and_nothing_half_written(trained):
    path, metrics = trained
    assert (path / "figures" / "training.png").stat().st_size > 1000
    assert not [item for item in path.rglob(".*") if item.name != ".lock"]
    head, *rows, last = summary(metrics).splitlines()
    assert head.split() == ["split", "nats/code", "bits/code", "bits/slice", "bits/pixel"]
    assert [row.split()[0] for row in rows] == ["train", "validate", "test"]
    assert rows[1].split()[1] == f"{metrics['nats_per_code']:.4f}"
    assert last.startswith(f"best epoch {metrics['epoch']} of 3")


def test_model_holds_the_averaged_weights(trained, grids):
    """As its last epoch is the best, they are the averages of the state it ended in."""
    path, metrics = trained
    assert metrics["epoch"] == 3
    model = build_model(grids, CONFIG, TRAINING.seed)
    compile_model(model, TRAINING, steps_per_epoch=5)
    load_checkpoint(Run(path), model)
    averages = values(model.optimizer._model_variables_moving_average)
    best = PixelCNN.from_run(Run(path))
    assert_bit_equal(values(best.trainable_variables), averages)
    own = values(model.trainable_variables)
    assert all((one != other).any() for one, other in zip(own, averages, strict=True))


def test_averages_are_those_of_the_weights_after_each_step(watched):
    path, _, seen = watched
    assert len(seen) == 3 * 5
    averages = seen[0]
    for steps, weights in enumerate(seen[1:], start=1):
        keep = min(TRAINING.average, (1 + steps) / (10 + steps))
        pairs = zip(averages, weights, strict=True)
        averages = [keep * old + (1 - keep) * new for old, new in pairs]
    best = PixelCNN.from_run(Run(path))
    for found, expected in zip(values(best.trainable_variables), averages, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Which epoch is kept, and when to stop


@pytest.fixture
def scored(monkeypatch):
    """Makes validation give these scores, one after the other."""

    def script(*scores):
        coming, evaluate = iter(scores), keras.Model.evaluate

        def scripted(self, *args, **kwargs):
            result = evaluate(self, *args, **kwargs)
            return {**result, "nats_per_code": next(coming, result["nats_per_code"])}

        monkeypatch.setattr(keras.Model, "evaluate", scripted)

    return script


def test_patience_ends_the_training_with_its_best_epoch_and_for_good(
    grids, tmp_path, scored, monkeypatch
):
    run, waiting = Run(tmp_path / "run"), {"epochs": 9, "patience": 2}
    grids = dataclasses.replace(
        grids, splits={name: grids.splits[name] for name in ("train", "validate")}
    )
    kept, save = [], keras.Model.save
    monkeypatch.setattr(
        keras.Model,
        "save",
        lambda self, path: (kept.append(values(self.trainable_variables)), save(self, path)),
    )
    scored(2.0, 1.5, 1.6, 1.7)
    metrics = go_on(run, grids, **waiting)
    assert history(run.path)["val_nats_per_code"] == [2.0, 1.5, 1.6, 1.7]
    assert (metrics["epoch"], metrics["epochs"], len(kept)) == (2, 4, 2)
    assert list(metrics["splits"]) == ["train", "validate"]
    assert_bit_equal(values(PixelCNN.from_run(run).trainable_variables), kept[1])

    def never(*_):
        raise AssertionError("a training that has waited long enough takes no step")

    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", never)
    before = contents(run.path)
    assert go_on(run, grids, **waiting) == metrics
    after = contents(run.path)
    for name in ("state.npz", "model.keras", "history.csv", "metrics.json"):
        assert after[name] == before[name]


# Going on


def test_interrupted_training_ends_as_the_undisturbed(trained, grids, tmp_path, monkeypatch):
    """Dropout, averages, Adam, the schedule, the order of grids and of their variants go on."""
    chosen = np.random.default_rng(0).choice(3 * 5, 2, replace=False)
    places = [divmod(int(step), 5) for step in sorted(chosen)]
    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", interrupts(places))
    run = Run(tmp_path / "run")
    for epoch, step in places:
        with pytest.raises(KeyboardInterrupt, match="The same command goes on from there"):
            go_on(run, grids)
        told = json.loads(saved(run.path)["progress"].item())
        assert (told["epoch"], told["step"]) == (epoch, step + 1)
        assert not run.metrics_path.exists()
    go_on(run, grids)
    assert_same_training(trained[0], run.path)


def test_names_do_not_count_what_the_process_made_before(run, grids, monkeypatch):
    """TensorFlow orders some sums by name: others would change the last bits."""
    seen, build = [], pixelcnn.training.build_model

    def watch(*arguments):
        model = build(*arguments)
        seen.append([variable.path for variable in model.variables])
        return model

    monkeypatch.setattr(pixelcnn.training, "build_model", watch)
    for _ in range(2):
        go_on(run, grids)
        for _ in range(9):
            build(grids, CONFIG, 0)
    assert seen[0] == seen[1]


def test_more_epochs_go_on_where_fewer_ended(run, trained, grids):
    metrics = go_on(run, grids, epochs=4)
    assert metrics["epochs"] == 4
    earlier = (trained[0] / "history.csv").read_text()
    assert run.history_path.read_text().startswith(earlier)
    assert len(history(run.path)["epoch"]) == 4
    assert read_json(run.config_path)["training"]["epochs"] == 4


@pytest.mark.parametrize(
    ("model", "training", "named"),
    [
        ({"layers": 3}, {}, "layers=2 (asked: 3)"),
        ({"scan": "raster"}, {}, "scan='turned' (asked: 'raster')"),
        ({}, {"variants": 1}, "variants=2 (asked: 1)"),
        ({}, {"epochs": 2}, "epochs=3 (asked: 2)"),
        ({}, {"average": 0.5, "seed": 3}, "average=0.8 (asked: 0.5); seed=0 (asked: 3)"),
    ],
)
def test_other_configuration_is_refused_by_field(run, grids, model, training, named):
    before = contents(run.path)
    with pytest.raises(InputError) as caught:
        go_on(run, grids, dataclasses.replace(CONFIG, **model), **training)
    assert f"Run {run.path} was begun with" in str(caught.value)
    assert named in str(caught.value)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("field", "flag", "before", "now"),
    [("vqvae_hash", "--vqvae", "aaaaaaaaaaaa", "bbbbbbbbbbbb")]
    + [("archive_hash", "--data", "cccccccccccc", "bbbbbbbbbbbb")],
)
def test_codes_of_another_vqvae_or_archive_are_refused(run, grids, field, flag, before, now):
    untouched = contents(run.path)
    with pytest.raises(InputError) as caught:
        go_on(run, dataclasses.replace(grids, **{field: "b" * 64}))
    assert str(run.path) in str(caught.value)
    assert all(word in str(caught.value) for word in (flag, before, now))
    assert contents(run.path) == untouched


def test_locked_run_is_refused(run, grids):
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        go_on(run, grids)


@pytest.mark.parametrize("missing", ["train", "validate"])
def test_codes_without_a_split_to_train_on_are_refused(grids, tmp_path, missing):
    rest = {name: each for name, each in grids.splits.items() if name != missing}
    with pytest.raises(InputError, match=f"hold no {missing} slices. Make an archive"):
        go_on(Run(tmp_path / "run"), dataclasses.replace(grids, splits=rest))
    assert not any(tmp_path.iterdir())


# Batches


def batch(batches, index):
    (inputs,) = batches[index]
    return inputs


@pytest.fixture(scope="module")
def numbered():
    """A split of 12 slices, and 3 variants, whose codes tell slice and variant."""
    rows = np.arange(12, dtype="uint16")[:, None, None] * np.ones((1, 2, 2), "uint16")
    names = np.arange(12).astype(str)
    variants = np.stack([rows + 100 * (number + 1) for number in range(3)])
    return SplitCodes(rows, names, names, np.linspace(0, 1, 12, dtype="float32")), variants


def test_slices_come_as_themselves_or_as_a_variant_of_their_own(numbered):
    slices, variants = numbered
    counts = np.zeros((4, 12), int)
    for epoch in range(60):
        batches = CodeBatches(slices, 5, seed=1, variants=variants, epoch=epoch)
        assert len(batches) == 2
        for index in range(2):
            inputs = batch(batches, index)
            assert inputs["codes"].dtype == np.int32
            assert inputs["codes"].shape == (5, 2, 2)
            which, row = np.divmod(inputs["codes"][:, 0, 0], 100)
            assert (inputs["codes"] == inputs["codes"][:, :1, :1]).all()
            np.testing.assert_array_equal(inputs["position"], slices.positions[row])
            assert len(np.unique(row)) == 5
            np.add.at(counts, (which, row), 1)
    assert (counts.sum(axis=0) > 35).all()
    np.testing.assert_allclose(counts.sum(axis=1), 150, atol=45)  # four standard deviations


def test_epoch_and_step_alone_fix_a_batch(numbered):
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
            np.concatenate([batch(each, k)["codes"] for k in range(4)]) for each in (whole, others)
        ]
        assert (codes[0] != codes[1]).any()


def test_without_a_seed_all_come_in_order_as_they_are(numbered):
    slices, variants = numbered
    batches = CodeBatches(slices, 5, variants=variants)
    codes = np.concatenate([batch(batches, index)["codes"] for index in range(3)])
    np.testing.assert_array_equal(codes, slices.codes)


def test_without_variants_slices_come_as_they_are(numbered):
    slices, _ = numbered
    batches = CodeBatches(slices, 12, seed=1)
    assert batch(batches, 0)["codes"].max() < 100


@pytest.mark.parametrize("count", [0, 1, 2])
def test_training_draws_from_as_many_variants_as_asked(grids, tmp_path, monkeypatch, count):
    class Begun(Exception):
        pass

    def begin(model, batches, validation, *_):
        raise Begun(batches, validation)

    monkeypatch.setattr("brainslices.training.fit", begin)
    with pytest.raises(Begun) as begun:
        go_on(Run(tmp_path / "run"), grids, variants=count)
    batches, validation = begun.value.args
    np.testing.assert_array_equal(batches.variants, grids.variants[:count])
    assert (batches.split, batches.seed) == (grids.splits["train"], TRAINING.seed)
    assert (validation.split, validation.seed) == (grids.splits["validate"], None)


def test_run_without_a_finished_epoch_has_no_prior(run):
    run.model_path.unlink()
    run.history_path.unlink()
    with pytest.raises(InputError, match=f"Run {run.path} has no model.keras: no epoch"):
        PixelCNN.from_run(run)


# JAX, in a process of its own

JAX = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
sys.modules["tensorflow_probability"] = None
sys.path[:0] = [{tests!r} + "/pixelcnn", {tests!r} + "/support"]
import dataclasses, pathlib
import keras, numpy as np, pytest
import test_training as tests
from brainslices.runs.run import Run
assert keras.backend.backend() == "jax"
here = pathlib.Path({here!r})
grids = tests.CodeGrids.load(here / "codes.npz")
patch = pytest.MonkeyPatch()
tests.go_on(Run(here / "whole"), grids)
patch.setattr(tests.CheckpointCallback, "on_train_batch_end", tests.interrupts([(1, 2)]))
with pytest.raises(KeyboardInterrupt):
    tests.go_on(Run(here / "cut"), grids)
tests.go_on(Run(here / "cut"), grids)
tests.assert_same_training(here / "whole", here / "cut")
np.savez(here / "drawn.npz", **tests.drawn_with({run!r}), **tests.drawn_with(here / "whole", "own"))
"""


def drawn_with(path, name="drawn"):
    """What a run's prior draws: codes and log-probabilities, by name."""
    sampler = Sampler(PixelCNN.from_run(Run(path)))
    positions = np.linspace(0.1, 0.9, 6, dtype="float32")
    drawn = sampler(positions, uniform_noise(0, range(6), GRID))
    return {f"{name}_{key}": value for key, value in drawn.items()}


@pytest.mark.slow
def test_jax_trains_goes_on_and_samples_alike(trained, grids, tmp_path):
    pytest.importorskip("jax")
    grids.save(tmp_path / "codes.npz")
    code = JAX.format(tests=str(ROOT / "tests"), here=str(tmp_path), run=str(trained[0]))
    ran = python("-c", code, timeout=500, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    told = history(tmp_path / "whole")
    assert told["val_nats_per_code"][2] < told["val_nats_per_code"][0]
    expected = drawn_with(trained[0])
    with np.load(tmp_path / "drawn.npz") as drawn:
        np.testing.assert_array_equal(drawn["drawn_codes"], expected["drawn_codes"])
        np.testing.assert_allclose(drawn["drawn_log_prob"], expected["drawn_log_prob"], atol=1e-4)
        assert drawn["own_codes"].min() >= 0
        assert drawn["own_codes"].max() < CODES
        assert np.isfinite(drawn["own_log_prob"]).all()
