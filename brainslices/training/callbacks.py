"""Callbacks of a training, one job each; `brainslices.training.loop.fit` states their order."""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from brainslices.config import TrainingConfig
from brainslices.csv_files import write_rows
from brainslices.data.batches import Batches
from brainslices.distributed.collectives import (
    any_process,
    is_primary,
    process_index_and_count,
    run_on_primary,
)
from brainslices.distributed.devices import single_device
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.loading import copy_model
from brainslices.runs.run import Run
from brainslices.training.checkpoint import TrainingProgress, has_finite_variables, save_checkpoint
from brainslices.training.compat import sync_variables
from brainslices.training.optimizer import assign, ema_swap
from brainslices.visualization.figures import training_figure

__all__ = [
    "CheckpointCallback",
    "EarlyStopping",
    "EmaValidation",
    "FiniteCheck",
    "HistoryCallback",
    "Objective",
    "StepCounter",
    "StopCallback",
    "TrainingCallback",
    "draw_history",
]

# Within an epoch a checkpoint is written this often: the most that a power cut can cost.
SAVE_INTERVAL_S = 600.0
# Reading a loss waits for the device: check every 50 steps, and at least four times an epoch.
CHECK_STEPS, CHECKS_PER_EPOCH = 50, 4
# Processes agree about this often whether to stop, and after how many steps at most.
AGREE_INTERVAL_S, AGREE_STEPS = 5.0, 50


@dataclass(frozen=True)
class Objective:
    """The validation score that selects the best epoch.

    Args:
        monitor: its name in the history, such as "val_ssim_foreground".
        mode: "max" if higher is better, "min" if lower is.

    Example:
        >>> objective, history = Objective("val_loss", "min"), {"val_loss": [3.0, 1.0, 1.0]}
        >>> objective.best_epoch(history), objective.patience_exhausted(history, 1)
        (2, True)
    """

    monitor: str
    mode: Literal["min", "max"]

    def best_epoch(self, history: Mapping[str, Sequence[float]]) -> int:
        """Return the epoch with the best score, counted from 1; the first one of a tie."""
        scores = np.asarray(history[self.monitor])
        return int(np.argmax(scores if self.mode == "max" else -scores)) + 1

    def patience_exhausted(self, history: Mapping[str, Sequence[float]], patience: int) -> bool:
        """Whether the score has not improved for `patience` epochs; never if that is 0."""
        if not patience or not history:
            return False
        return len(history[self.monitor]) - self.best_epoch(history) >= patience


class TrainingCallback(keras.callbacks.Callback):
    """Base class: everything that the callbacks of one training share."""

    def __init__(
        self,
        run: Run,
        config: TrainingConfig,
        objective: Objective,
        batches: Batches,
        progress: TrainingProgress,
    ):
        super().__init__()
        self.run, self.config, self.objective = run, config, objective
        self.batches, self.progress = batches, progress


class StepCounter(TrainingCallback):
    """Count steps, set the epoch of the batches, restore the metrics of a resumed epoch."""

    resumed_metrics = None

    def on_train_begin(self, logs=None):
        if self.progress.step:
            self.resumed_metrics = _copies(self.model.metrics_variables)

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        if self.resumed_metrics is not None:  # Keras has just reset them
            assign(self.model.metrics_variables, self.resumed_metrics)
            self.resumed_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step += 1


class FiniteCheck(TrainingCallback):
    """Abort at a NaN or infinite loss, score or weight; the last good checkpoint stays."""

    def __init__(self, *shared: Any):
        super().__init__(*shared)
        self.last_checkpoint = self.progress.epoch, self.progress.step

    def on_train_begin(self, logs=None):
        self.interval = max(1, min(CHECK_STEPS, self.batches.steps_per_epoch // CHECKS_PER_EPOCH))

    def on_train_batch_end(self, batch, logs=None):
        if self.progress.step % self.interval == 0:
            self._check_logs(logs)

    def on_epoch_end(self, epoch, logs=None):
        self.check(logs)

    def check(self, logs: Mapping[str, float]) -> None:
        """Check the values of a step or an epoch, then the weights and the optimizer.

        Raises:
            InputError: if one is NaN or infinite.
        """
        self._check_logs(logs)
        if not has_finite_variables(self.model):
            self._abort("weight")

    def _check_logs(self, logs):
        names = [name for name, value in logs.items() if not np.isfinite(float(value))]
        if names:
            self._abort(", ".join(names))

    @property
    def last_good(self) -> str:
        """Sentence that says what can be resumed from."""
        epoch, step = self.last_checkpoint
        return f"The last good checkpoint in {self.run.path} is of epoch {epoch + 1}, step {step}."

    def _abort(self, name):
        raise InputError(
            f"NaN or infinite {name} in epoch {self.progress.epoch + 1} at step "
            f"{self.progress.step}. {self.last_good} Try a lower --learning-rate, a "
            "--gradient-clip of 1, or --precision float32, in a new --run."
        )


class EmaValidation(TrainingCallback):
    """Validate with the averaged weights, if there are any."""

    def on_test_begin(self, logs=None):
        self.training_metrics = _copies(self.model.metrics_variables)
        self.swap = contextlib.ExitStack()
        self.swap.enter_context(ema_swap(self.model))

    def on_test_end(self, logs=None):
        self.swap.close()

    def cancel(self) -> None:
        """Restore, during validation, the weights and metrics of the training."""
        sync_variables(self.model)
        self.swap.close()
        assign(self.model.metrics_variables, self.training_metrics)


class HistoryCallback(TrainingCallback):
    """Finish an epoch: extend the history, save the model of the best epoch and history.csv."""

    def on_epoch_end(self, epoch, logs=None):
        history = self.progress.history
        for key, value in {**logs, "learning_rate": self.model.optimizer.learning_rate}.items():
            history.setdefault(key, []).append(float(value))
        self.progress.epoch, self.progress.step = epoch + 1, 0
        if self.objective.best_epoch(history) == self.progress.epoch:
            with ema_swap(self.model), single_device():
                self._save_model()
        if is_primary():
            rows = [
                {"epoch": number, **dict(zip(history, values, strict=True))}
                for number, values in enumerate(zip(*history.values(), strict=True), start=1)
            ]
            with atomic_path(self.run.history_path) as temporary:
                write_rows(temporary, rows)

    def _save_model(self):
        if is_primary():
            with atomic_path(self.run.model_path) as temporary:
                # No user of the model needs the state and the class of its optimizer.
                copy_model(self.model).save(temporary)


class CheckpointCallback(TrainingCallback):
    """Write a checkpoint after each epoch and every ten minutes within one."""

    def __init__(self, finite_check: FiniteCheck, *shared: Any):
        super().__init__(*shared)
        self.finite_check = finite_check
        self.saved_at = self.counted_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self.saved_at > SAVE_INTERVAL_S:
            self.save(logs)

    def on_epoch_end(self, epoch, logs=None):
        self.save(logs)

    def save(self, logs: Mapping[str, float]) -> None:
        """Write a checkpoint, unless a value of the logs or the model is NaN or infinite."""
        self.finite_check.check(logs)
        now = time.monotonic()
        self.progress.seconds += now - self.counted_at
        self.counted_at = now
        if is_primary():
            save_checkpoint(self.run, self.model, self.progress)
        self.finite_check.last_checkpoint = self.progress.epoch, self.progress.step
        self.saved_at = time.monotonic()


class EarlyStopping(TrainingCallback):
    """Stop when the objective has not improved for `patience` epochs."""

    def on_epoch_end(self, epoch, logs=None):
        history, patience = self.progress.history, self.config.patience
        self.model.stop_training = self.objective.patience_exhausted(history, patience)


class StopCallback(TrainingCallback):
    """Stop after the current step, with a checkpoint, at SIGINT or SIGTERM.

    Several processes stop after the same step, whichever of them received the signal.
    """

    def __init__(self, checkpoint: CheckpointCallback, validation: EmaValidation, *shared: Any):
        super().__init__(*shared)
        self.checkpoint, self.validation = checkpoint, validation
        self.signal_received = False
        self.is_single_process = process_index_and_count()[1] == 1
        # Agree after each step until the duration of a step is known.
        self.agree_steps, self.timed_steps, self.timed_from = 1, 0, 0.0

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle the first signal within the block; a second one acts as it did before."""
        previous: dict[int, Any] = {}

        def restore():
            for number, handler in previous.items():
                signal.signal(number, handler)

        def request_stop(number, frame):
            self.signal_received = True
            restore()

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # only the main thread handles signals
                previous[number] = signal.signal(number, request_stop)
        try:
            yield
        finally:
            restore()

    def on_train_batch_end(self, batch, logs=None):
        self._choose_agree_steps()
        step = self.progress.step
        # After the last step of an epoch, validation stops.
        if step < self.batches.steps_per_epoch and self._must_stop(step):
            self.checkpoint.save(logs)
            self._stop()

    def on_test_batch_end(self, batch, logs=None):
        if self._must_stop(batch):
            self.validation.cancel()
            self.checkpoint.save({})
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        if self._must_stop(0):
            self._stop()

    def _must_stop(self, step):
        if self.is_single_process:
            return self.signal_received
        return step % self.agree_steps == 0 and any_process(self.signal_received)

    def _choose_agree_steps(self):
        """Agree on an interval by the duration of process 0's second and third step."""
        self.timed_steps += 1
        if self.is_single_process or self.timed_steps not in (1, 3):
            return
        if self.timed_steps == 1:
            self.timed_from = time.monotonic()
            return
        step_s = (time.monotonic() - self.timed_from) / 2
        self.agree_steps = run_on_primary(
            lambda: int(np.clip(AGREE_INTERVAL_S / step_s, 1, AGREE_STEPS))
        )

    def _stop(self):
        if is_primary():
            draw_history(self.run, self.progress)
        raise KeyboardInterrupt(
            f"Checkpoint saved in {self.run.path} after epoch {self.progress.epoch}, step "
            f"{self.progress.step} of the next. Rerun the same command to resume."
        )


def draw_history(run: Run, progress: TrainingProgress) -> None:
    """Draw the curves of the finished epochs, if there are any, to `figures/training.png`."""
    if progress.history:
        training_figure(run.figures / "training.png", progress.history)


def _copies(variables):
    return [np.array(variable) for variable in variables]
