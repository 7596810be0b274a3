import signal

import numpy as np
import pytest
from helpers import tiny_training
from training_runs import OBJECTIVE, NumberedArchive, compiled_model

from brainslices.data.batches import SliceBatches
from brainslices.errors import InputError
from brainslices.runs.run import Run
from brainslices.training.callbacks import (
    CheckpointCallback,
    EarlyStopping,
    EmaValidation,
    FiniteCheck,
    HistoryCallback,
    Objective,
    StopCallback,
)
from brainslices.training.checkpoint import TrainingProgress
from brainslices.training.reporting import CollapseWarning, ProgressReport

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture
def shared(tmp_path):
    """Arguments that all callbacks of a training take."""
    batches = SliceBatches(NumberedArchive(), np.arange(40), 8, seed=0)
    config = tiny_training(patience=2)
    return Run(tmp_path), config, OBJECTIVE, batches, TrainingProgress(epoch=1, step=2)


@pytest.fixture(scope="module")
def model():
    return compiled_model(tiny_training())


def attached(callback, model):
    """A callback as Keras runs it: with its model, after the start of the training."""
    callback.set_model(model)
    callback.on_train_begin()
    return callback


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [0.2, 0.9, 0.5], 2),
        ("min", [0.2, 0.9, 0.5], 1),
        ("max", [0.9, 0.9], 1),
        ("min", [3.0, 1.0, 1.0], 2),
        ("max", [-1.0], 1),
    ],
)
def test_best_epoch_is_the_first_with_the_best_score(mode, scores, best):
    assert Objective("score", mode).best_epoch({"score": scores, "other": scores[::-1]}) == best


@pytest.mark.parametrize(
    ("scores", "patience", "exhausted"),
    [([], 2, False), ([1, 2, 3], 0, False), ([1, 2], 2, False), ([1, 2, 3], 2, True)],
)
def test_patience_counts_the_epochs_since_the_best(scores, patience, exhausted):
    history = {"val_ssim": [-score for score in scores]} if scores else {}
    assert OBJECTIVE.patience_exhausted(history, patience) is exhausted


def test_early_stopping_ends_the_training(shared, model):
    callback, progress = attached(EarlyStopping(*shared), model), shared[-1]
    for score, expected in ((0.5, False), (0.4, False), (0.3, True)):
        progress.history.setdefault("val_ssim", []).append(score)
        callback.on_epoch_end(0, {})
        assert model.stop_training is expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_abort_the_training(shared, model, value):
    callback = attached(FiniteCheck(*shared), model)
    callback.on_train_batch_end(0, {"loss": 1.0})
    for event in (callback.on_train_batch_end, callback.on_epoch_end):
        with pytest.raises(InputError, match="NaN or infinite loss in epoch 2 at step 2") as caught:
            event(0, {"ssim": 0.5, "loss": value})
        assert f"checkpoint in {shared[0].path} is of epoch 2, step 2" in str(caught.value)
        assert "--learning-rate" in str(caught.value)


def test_long_epochs_are_checked_every_few_steps(shared, model):
    progress, batches = shared[-1], shared[-2]
    batches.count = 8 * 1000
    callback = attached(FiniteCheck(*shared), model)
    progress.step = 49
    callback.on_train_batch_end(0, {"loss": np.nan})
    progress.step = 50
    with pytest.raises(InputError):
        callback.on_train_batch_end(0, {"loss": np.nan})


def test_nan_weights_are_never_saved(shared):
    model = compiled_model(tiny_training())
    finite_check = attached(FiniteCheck(*shared), model)
    checkpoint = attached(CheckpointCallback(finite_check, *shared), model)
    checkpoint.save({})
    before = shared[0].checkpoint_path.read_bytes()
    weight = model.trainable_variables[0]
    weight.assign(np.full(weight.shape, np.nan))
    with pytest.raises(InputError, match="NaN or infinite weight"):
        checkpoint.save({"loss": 0.5})
    assert shared[0].checkpoint_path.read_bytes() == before


def test_long_epochs_are_saved_every_ten_minutes(shared, model):
    finite_check = attached(FiniteCheck(*shared), model)
    checkpoint = attached(CheckpointCallback(finite_check, *shared), model)
    checkpoint.on_train_batch_end(0, {})
    assert not shared[0].checkpoint_path.exists()
    checkpoint.saved_at -= 601
    checkpoint.on_train_batch_end(0, {})
    assert shared[0].checkpoint_path.exists()
    assert finite_check.last_checkpoint == (1, 2)


def test_history_grows_by_an_epoch_and_the_best_model_is_saved(shared, model):
    run, progress = shared[0], shared[-1]
    callback = attached(HistoryCallback(*shared), model)
    saved = []
    for epoch, score in enumerate((0.2, 0.9, 0.5)):
        run.model_path.unlink(missing_ok=True)
        callback.on_epoch_end(epoch, {"loss": 0.1 * epoch, "val_ssim": score})
        assert (progress.epoch, progress.step) == (epoch + 1, 0)
        saved.append(run.model_path.exists())
    assert saved == [True, True, False]
    lines = run.history_path.read_text().splitlines()
    assert lines[0] == "epoch,loss,val_ssim,learning_rate"
    assert lines[2].startswith("2,0.1,0.9,")


def test_validation_uses_the_averaged_weights(shared):
    model = compiled_model(tiny_training(average=0.9))
    for average in model.optimizer._model_variables_moving_average:
        average.assign(np.full(average.shape, 2.0))
    weights = [np.array(weight) for weight in model.trainable_variables]
    validation = attached(EmaValidation(*shared), model)
    for end in (validation.on_test_end, validation.cancel):
        model.score.update_state(0.5)
        validation.on_test_begin()
        assert all((np.asarray(weight) == 2).all() for weight in model.trainable_variables)
        model.reset_metrics()
        end()
        for weight, before in zip(model.trainable_variables, weights, strict=True):
            np.testing.assert_array_equal(weight, before)
    assert float(model.score.result()) == 0.5  # `cancel` restores the metrics as well


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_the_step_with_a_checkpoint(shared, model, number):
    run, progress = shared[0], shared[-1]
    finite_check = attached(FiniteCheck(*shared), model)
    checkpoint = attached(CheckpointCallback(finite_check, *shared), model)
    stop = attached(StopCallback(checkpoint, EmaValidation(*shared), *shared), model)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop.handle_signals():
        stop.on_train_batch_end(0, {})
        signal.raise_signal(number)
        # A second signal acts at once.
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        progress.step = 5
        stop.on_train_batch_end(0, {})  # the last step: validation stops
        assert not run.checkpoint_path.exists()
        progress.step = 3
        with pytest.raises(KeyboardInterrupt, match="after epoch 1, step 3 of the next"):
            stop.on_train_batch_end(0, {})
    assert run.checkpoint_path.exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_codebook_collapse_is_reported_with_remedies(shared, caplog):
    callback, progress = CollapseWarning(*shared), shared[-1]
    for usage in (0.5, 0.09, 0.05):
        progress.history.setdefault("codebook_usage", []).append(usage)
        callback.on_epoch_end(0, {})
    assert not caplog.messages
    progress.history["codebook_usage"].append(0.02)
    callback.on_epoch_end(0, {})
    (message,) = caplog.messages
    assert message.startswith("codebook collapse: 2.0% of the codes")
    assert "--restart-threshold" in message


def test_report_is_a_line_for_each_epoch(shared, capsys):
    report = ProgressReport(*shared)
    report.on_epoch_begin(0)
    for _ in range(5):
        report.on_train_batch_end(0)
    report.on_epoch_end(0, {"loss": 0.25, "val_ssim": 0.5, "unknown": 1, "codebook_usage": 0.75})
    printed = capsys.readouterr().out
    assert printed.startswith("epoch 1/2  loss 0.2500  ssim 0.5000  usage 75%  ")
    assert "slices/s" in printed
    report.on_epoch_begin(1)
    report.on_train_batch_end(0)
    report.on_epoch_end(1, {"loss": 0.25, "nats_per_code": 0.25, "val_nats_per_code": 0.5})
    assert capsys.readouterr().out == "epoch 2/2  nats per code 0.2500  validation 0.5000\n"
