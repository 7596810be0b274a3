"""The training loop of both stages: resumes bit for bit, saves the best epoch and checkpoints."""

import contextlib

import keras

from brainslices.config import TrainingConfig
from brainslices.data.batches import Batches
from brainslices.distributed.collectives import is_primary
from brainslices.distributed.devices import list_gpus
from brainslices.runs.run import Run
from brainslices.training.callbacks import (
    CheckpointCallback,
    EarlyStopping,
    EmaValidation,
    FiniteCheck,
    HistoryCallback,
    Objective,
    StepCounter,
    StopCallback,
    draw_history,
)
from brainslices.training.checkpoint import TrainingProgress, load_checkpoint, save_checkpoint
from brainslices.training.pipeline import input_pipeline
from brainslices.training.reporting import CollapseWarning, ProgressReport
from brainslices.training.tensorboard import tensorboard_callbacks

__all__ = ["enable_determinism", "fit"]


def fit(
    model: keras.Model,
    batches: Batches,
    validation: Batches,
    run: Run,
    config: TrainingConfig,
    objective: Objective,
) -> TrainingProgress:
    """Train a compiled model, or resume from the run's checkpoint.

    Writes `state.npz`, `model.keras` (the best epoch), `history.csv`, the curves and the
    TensorBoard logs. If the optimizer averages the weights, the average is validated and saved.

    Args:
        model: built and compiled; its state is replaced by the checkpoint's.
        batches: training batches.
        validation: validation batches.
        run: a run whose lock is held.
        config: the training's configuration.
        objective: the validation score that selects the best epoch.

    Returns:
        The progress after the last epoch: `config.epochs`, or earlier by `config.patience`.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM; a checkpoint was written after the current step.
        InputError: a loss or weight is NaN or infinite, or the checkpoint does not fit the model.
    """
    progress = load_checkpoint(run, model)
    if is_primary() and not run.checkpoint_path.exists():
        save_checkpoint(run, model, progress)  # marks the folder as a run that has started
    callbacks = _callbacks(run, config, objective, batches, progress)
    report, _, finite_check, *_, stop = callbacks
    options = {"validation_data": input_pipeline(validation), "callbacks": callbacks}
    with stop.handle_signals(), contextlib.closing(report), _note_last_good(finite_check):
        if progress.step == batches.steps_per_epoch:
            _finish_validation(model, progress, **options)
        elif progress.step and not objective.patience_exhausted(progress.history, config.patience):
            _fit_epochs(model, batches, progress, progress.epoch + 1, options)
        exhausted = objective.patience_exhausted(progress.history, config.patience)
        if progress.epoch < config.epochs and not exhausted:
            _fit_epochs(model, batches, progress, config.epochs, options)
    if is_primary():
        draw_history(run, progress)
    return progress


@contextlib.contextmanager
def _note_last_good(finite_check):
    """Add the last good checkpoint to errors of a full disk or a lost permission."""
    try:
        yield
    except OSError as error:
        error.add_note(finite_check.last_good)
        raise


def _callbacks(run, *shared):
    """All callbacks of a training; their order matters."""
    shared = run, *shared
    finite_check, ema_validation = FiniteCheck(*shared), EmaValidation(*shared)
    checkpoint = CheckpointCallback(finite_check, *shared)
    return [
        ProgressReport(*shared),  # prints an epoch's scores even if a later callback aborts
        StepCounter(*shared),  # all others see the step counted
        finite_check,  # before anything is written
        ema_validation,  # restores the weights of the training before they are saved
        # model.keras, then history.csv, then the checkpoint: after a kill between two of them the
        # epoch is repeated and writes all of them again.
        HistoryCallback(*shared),
        CollapseWarning(*shared),
        checkpoint,
        EarlyStopping(*shared),
        *(tensorboard_callbacks(run) if is_primary() else []),
        StopCallback(checkpoint, ema_validation, *shared),  # raises when all others are done
    ]


def _fit_epochs(model, batches, progress, epochs, options):
    # The rest of an epoch needs a `fit` of its own: Keras gives all epochs of one the same length.
    batches.epoch, batches.first_step = progress.epoch, progress.step
    # No shuffling by Keras: no checkpoint holds that order.
    span = {"initial_epoch": progress.epoch, "epochs": epochs}
    model.fit(input_pipeline(batches), **span, **options, shuffle=False, verbose=0)


def _finish_validation(model, progress, validation_data, callbacks):
    """Finish an epoch that was stopped in its validation: Keras has no `fit` without a step."""
    callbacks = keras.callbacks.CallbackList(callbacks, model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(progress.epoch)
    logs = dict(model.get_metrics_result())
    scores = model.evaluate(validation_data, verbose=0, callbacks=callbacks, return_dict=True)
    logs |= {f"val_{name}": score for name, score in scores.items()}
    callbacks.on_epoch_end(progress.epoch, logs)
    callbacks.on_train_end()


def enable_determinism() -> None:
    """Make TensorFlow on a CPU sum in a fixed order, whatever the timing of its threads.

    The cost on a CPU is negligible; on a GPU it is not, and some operations are not supported.
    """
    if keras.backend.backend() != "tensorflow" or list_gpus():
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
