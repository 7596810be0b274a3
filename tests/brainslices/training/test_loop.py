import csv
import shutil
import signal

import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, values
from training_runs import (
    STEPS,
    Autoencoder,
    contents,
    fit_tiny,
    interrupt_after,
    saved_arrays,
    saved_progress,
)

from brainslices.data.batches import SliceBatches
from brainslices.errors import InputError
from brainslices.runs.run import Run
from brainslices.training import callbacks, loop
from brainslices.training.callbacks import EmaValidation

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture(scope="module", autouse=True)
def light():
    """Leave out the figure and TensorBoard, which take longer than the tiny trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "training_figure", lambda path, history: None)
        patch.setattr(loop, "tensorboard_callbacks", lambda run: [])
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training: (model, progress, run); tests that train on work on copies."""
    run = Run(tmp_path_factory.mktemp("runs") / "whole")
    return *fit_tiny(run), run


@pytest.fixture
def run(whole, tmp_path):
    return Run(shutil.copytree(whole[-1].path, tmp_path / "run"))


def assert_same_training(whole, model, progress, run):
    """Equal to the last bit: model, optimizer, history, checkpoint."""
    other_model, other_progress, other_run = whole
    assert (progress.epoch, progress.step) == (other_progress.epoch, other_progress.step)
    assert progress.history == other_progress.history
    assert_bit_equal(values(model.variables), values(other_model.variables))
    assert_bit_equal(values(model.optimizer.variables), values(other_model.optimizer.variables))
    first, second = saved_arrays(run), saved_arrays(other_run)
    assert first.keys() == second.keys()
    assert_bit_equal([*first.values()], [*second.values()])
    assert run.history_path.read_text() == other_run.history_path.read_text()


def test_training_writes_its_history_and_model(whole):
    _, progress, run = whole
    assert (progress.epoch, progress.step) == (3, 0)
    with run.history_path.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", "loss", "ssim", "val_loss", "val_ssim", "learning_rate"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    for number, name in enumerate(header[1:], start=1):
        assert [float(row[number]) for row in rows] == progress.history[name]
    assert run.model_path.is_file()
    assert saved_progress(run) == vars(progress)


@pytest.mark.parametrize(
    "places",
    [
        [(1, 3)],
        pytest.param([(0, 1)], marks=pytest.mark.slow),
        # After an epoch's last step, validation stops.
        pytest.param([(0, 2), (0, 4), (1, STEPS), (2, 3), (2, STEPS)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_interrupted_training_equals_an_uninterrupted_one(whole, tmp_path, monkeypatch, places):
    interrupt_after(monkeypatch, places)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = Run(tmp_path / "run")
    for epoch, step in places:
        with pytest.raises(KeyboardInterrupt, match=f"after epoch {epoch}, step {step} of the nex"):
            fit_tiny(run)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert_same_training(whole, *fit_tiny(run), run)


def test_finished_training_returns_at_once(whole, run):
    before = contents(run.path)
    model, progress = fit_tiny(run)
    assert progress == whole[1]
    assert contents(run.path) == before
    assert_bit_equal(values(model.weights), values(whole[0].weights))


def test_nan_loss_aborts_within_the_epoch_and_leaves_the_checkpoint(run, monkeypatch):
    compute_loss = Autoencoder.compute_loss
    monkeypatch.setattr(
        Autoencoder,
        "compute_loss",
        lambda *inputs, **options: compute_loss(*inputs, **options) * float("nan"),
    )
    before = contents(run.path)
    with pytest.raises(InputError, match="NaN or infinite loss in epoch 4 at step 1"):
        fit_tiny(run, epochs=4)
    assert contents(run.path) == before


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["validation", "end of the epoch"])
def test_nan_weights_are_never_saved(run, monkeypatch, moment):
    """NaN after the last step, whose loss was still finite."""
    begin = EmaValidation.on_test_begin

    def spoil(self, logs=None):
        weight = self.model.trainable_variables[0]
        weight.assign(np.full(weight.shape, np.nan))
        if moment == "validation":
            signal.raise_signal(signal.SIGTERM)
        begin(self, logs)

    monkeypatch.setattr(EmaValidation, "on_test_begin", spoil)
    before = contents(run.path)
    with pytest.raises(InputError, match="NaN or infinite .* in epoch 4"):
        fit_tiny(run, epochs=4)
    assert contents(run.path) == before


@pytest.mark.slow
def test_best_epoch_is_saved_not_the_last(tmp_path, monkeypatch):
    scores, saved = iter([0.2, 0.9, 0.5]), []
    evaluate, save = keras.Model.evaluate, keras.Model.save

    def scored(self, *args, **kwargs):
        return {**evaluate(self, *args, **kwargs), "ssim": next(scores)}

    def spy(self, path):
        saved.append(values(self.trainable_variables))
        save(self, path)

    monkeypatch.setattr(keras.Model, "evaluate", scored)
    monkeypatch.setattr(keras.Model, "save", spy)
    run = Run(tmp_path / "run")
    model, progress = fit_tiny(run)
    assert progress.history["val_ssim"] == [0.2, 0.9, 0.5]
    assert len(saved) == 2
    loaded = keras.saving.load_model(run.model_path, custom_objects={"Autoencoder": Autoencoder})
    assert_bit_equal(values(loaded.trainable_variables), saved[1])
    assert (saved[1][0] != values(model.trainable_variables)[0]).any()


@pytest.mark.slow
def test_batches_reach_the_model_in_order(tmp_path, monkeypatch):
    loaded = []
    get = SliceBatches.__getitem__

    def spy(self, index):
        if self.seed is not None:
            loaded.append((self.epoch, self.first_step + index))
        return get(self, index)

    monkeypatch.setattr(SliceBatches, "__getitem__", spy)
    interrupt_after(monkeypatch, [(1, 3)])
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(Run(tmp_path / "run"))
    loaded.clear()
    fit_tiny(Run(tmp_path / "run"))
    rest, last = [(1, 3), (1, 4)], [(2, step) for step in range(STEPS)]
    # The first batch of each `fit` is read once before, for its shape.
    assert loaded == [rest[0], *rest, last[0], *last]


@pytest.mark.slow
def test_training_resumes_from_the_previous_checkpoint(whole, run, caplog):
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    model, progress = fit_tiny(run)
    assert "Resuming from the previous checkpoint, epoch 3, step 0." in caplog.text
    assert_same_training(whole, model, progress, run)


@pytest.mark.slow
def test_exhausted_patience_ends_the_training_for_good(tmp_path, monkeypatch):
    scores, evaluate = iter([0.5, 0.4, 0.3]), keras.Model.evaluate

    def worse(self, *arguments, **options):
        return {**evaluate(self, *arguments, **options), "ssim": next(scores)}

    monkeypatch.setattr(keras.Model, "evaluate", worse)
    run = Run(tmp_path / "run")
    assert fit_tiny(run, epochs=9, patience=2)[1].epoch == 3
    before = contents(run.path)
    fit_tiny(run, epochs=9, patience=2)  # another epoch would exhaust the scores
    assert contents(run.path) == before
