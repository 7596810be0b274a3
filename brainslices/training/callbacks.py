"""What happens around a training's steps: the run folder is kept, and the progress shown."""

import contextlib
import csv
import io
import signal
import time
from typing import Literal

import keras
import numpy as np
from tqdm import tqdm

from brainslices import progress
from brainslices.distributed.collectives import any_process, process_index_and_count, run_on_primary
from brainslices.distributed.devices import single_device
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.run import Run
from brainslices.training.checkpoint import TrainingProgress, is_finite, save_checkpoint
from brainslices.training.optimizer import assign, ema_swap
from brainslices.visualization.figures import training_figure

__all__ = ["CheckpointCallback", "Progress", "best_epoch", "draw_history"]

# Within an epoch the state is saved this often: the most that a power cut can cost.
SAVE_INTERVAL_S = 600.0
# Looking at a loss waits for the device: now and then is enough, at least four times an epoch.
CHECK_STEPS, CHECKS = 50, 4
# Processes ask each other whether to stop about this often, and after how many steps at most.
ASK_S, ASK_STEPS = 5.0, 50
# Share of the codebook under which it has collapsed, if it stays so for some epochs.
COLLAPSED_USAGE, COLLAPSED_EPOCHS = 0.1, 3
# What an epoch's line tells, short enough for 100 columns; all else is in the history.
SHOWN = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_ssim": "ssim",
    "val_ssim_foreground": "foreground",
    "nats_per_code": "nats per code",
    "val_nats_per_code": "validation",
}


def best_epoch(state: TrainingProgress, monitor: str, mode: Literal["min", "max"]) -> int:
    """The first of the epochs, counted from 1, with the best score.

    Args:
        state: of a training with at least one finished epoch.
        monitor: name of the score in its history.
        mode: whether it is the better the higher or the lower.
    """
    scores = np.asarray(state.history[monitor])
    return int(np.argmax(scores if mode == "max" else -scores)) + 1


class CheckpointCallback(keras.callbacks.Callback):
    """Keeps the run folder: state, best model, history; stops at a signal with all of it saved."""

    def __init__(self, run, state, config, train, goal):
        super().__init__()
        self.run, self.state, self.train = run, state, train
        self.goal, self.patience = goal, config.patience
        self.lent = contextlib.ExitStack()
        # Keras resets the metrics as an epoch begins; a cut epoch goes on with those it had.
        self.restored = None
        self.saved_at = self.counted_at = time.monotonic()
        self.saved = state.epoch, state.step
        share, processes = process_index_and_count()
        self.first, self.single = share == 0, processes == 1
        steps = train.steps_per_epoch
        self.check_steps = min(CHECK_STEPS, max(1, steps // CHECKS))
        # Until it is known how long a step takes, processes ask after each.
        self.ask_steps, self.steps, self.began = 1, 0, 0.0
        self.stopped_by = None
        # The metrics of an epoch's training, while its validation goes on.
        self.trained = None

    @contextlib.contextmanager
    def signals(self):
        """Turn the first SIGINT or SIGTERM into a stop after the step; a second acts at once."""
        before = {}

        def stop(number, frame):
            self.stopped_by = signal.Signals(number).name
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # signals belong to the main thread alone
                before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_begin(self, logs=None):
        if self.state.step:
            self.restored = [np.asarray(value) for value in self.model.metrics_variables]

    def on_epoch_begin(self, epoch, logs=None):
        self.train.epoch = epoch
        if self.restored is not None:
            assign(self.model.metrics_variables, self.restored)
            self.restored = None

    def on_train_batch_end(self, batch, logs=None):
        self.state.step += 1
        self._choose_ask_steps()
        if self.state.step % self.check_steps == 0:
            self._require_finite(logs)
        if self.state.step == self.train.steps_per_epoch:
            return  # validation comes next, and looks for a stop as well
        if self._must_stop(self.state.step):
            self._save(logs)
            self._stop()
        elif time.monotonic() - self.saved_at > SAVE_INTERVAL_S:
            self._save(logs)

    def on_test_begin(self, logs=None):
        self.trained = [np.array(value) for value in self.model.metrics_variables]
        self.lent.enter_context(ema_swap(self.model))

    def on_test_batch_end(self, batch, logs=None):
        if self._must_stop(batch):
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self.lent.close()
            assign(self.model.metrics_variables, self.trained)
            self._save({})
            self._stop()

    def on_test_end(self, logs=None):
        self.lent.close()

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in logs.items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        self._require_finite(values)
        self._require_finite_weights()
        for key, value in values.items():
            self.state.history.setdefault(key, []).append(value)
        self.state.epoch, self.state.step = epoch + 1, 0
        self._warn_of_collapse()
        if best_epoch(self.state, *self.goal) == self.state.epoch:
            with ema_swap(self.model), single_device():
                self._save_model()
        if self.first:
            _write_history(self.run, self.state.history)
        self._save(values)
        if self._must_stop(0):
            self._stop()
        self.model.stop_training = self.patience_exhausted

    def _save_model(self):
        if self.first:
            with atomic_path(self.run.model_path) as temporary:
                _inference_copy(self.model).save(temporary)

    def _warn_of_collapse(self):
        usage = self.state.history.get("codebook_usage", [])
        last = usage[-COLLAPSED_EPOCHS:]
        if len(last) == COLLAPSED_EPOCHS and max(last) < COLLAPSED_USAGE:
            tqdm.write(
                f"warning: only {usage[-1]:.1%} of the codebook has been used for "
                f"{COLLAPSED_EPOCHS} epochs. Try --codebook ema, --kmeans-init, a "
                "--restart-threshold of 0.5, a lower --learning-rate, or fewer --num-embeddings."
            )

    @property
    def patience_exhausted(self):
        """Whether the score has not improved for as long as the configuration waits."""
        if not self.patience or not self.state.history:
            return False
        return self.state.epoch - best_epoch(self.state, *self.goal) >= self.patience

    def _save(self, logs):
        self._require_finite(logs)
        now = time.monotonic()
        self.state.seconds += now - self.counted_at
        self.counted_at = now
        self._require_finite_weights()
        if self.first:
            save_checkpoint(self.run, self.model, self.state)
        self.saved, self.saved_at = (self.state.epoch, self.state.step), time.monotonic()

    def _must_stop(self, step):
        """Whether a signal has come, to any of the processes: they stop after the same step."""
        if self.single:
            return self.stopped_by is not None
        return step % self.ask_steps == 0 and any_process(self.stopped_by is not None)

    def _choose_ask_steps(self):
        """All processes take what the first has measured on its second and third step."""
        self.steps += 1
        if self.single or self.steps not in (1, 3):
            return
        if self.steps == 1:
            self.began = time.monotonic()
            return
        seconds = (time.monotonic() - self.began) / 2
        self.ask_steps = run_on_primary(lambda: int(np.clip(ASK_S / seconds, 1, ASK_STEPS)))

    def _stop(self):
        if self.first:
            draw_history(self.run, self.state)
        raise KeyboardInterrupt(
            f"State saved in {self.run.path} after epoch {self.state.epoch}, step "
            f"{self.state.step} of the next. The same command goes on from there."
        )

    def _require_finite(self, logs):
        bad = [key for key, value in logs.items() if not np.isfinite(float(value))]
        if bad:
            self._refuse(", ".join(bad))

    def _require_finite_weights(self):
        if not is_finite(self.model):
            self._refuse("a weight")

    def _refuse(self, what):
        epoch, step = self.saved
        raise InputError(
            f"{what} is not finite, as seen in epoch {self.state.epoch + 1} at step "
            f"{self.state.step}. The last good state, of epoch {epoch + 1} and step {step}, is "
            f"kept in {self.run.path}. Try a lower --learning-rate, a --gradient-clip of 1, or "
            "--precision float32, in a new --run."
        )


class Progress(keras.callbacks.Callback):
    """A bar for the epoch under way, a line for each finished one."""

    def __init__(self, epochs, train, silent):
        super().__init__()
        self.epochs, self.train, self.silent = epochs, train, silent
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self.slices = 0
        # The first step is compiled, which tells nothing of the others.
        self.first_ended = self.ended = None
        self.bar = progress.bar(
            total=self.train.steps_per_epoch * self.train.batch_size,
            description=f"epoch {epoch + 1}/{self.epochs}",
            unit="slices",
            initial=self.train.first_step * self.train.batch_size,
            silent=self.silent,
        )

    def on_train_batch_end(self, batch, logs=None):
        self.ended = time.monotonic()
        if self.first_ended is None:
            self.first_ended = self.ended
        else:
            self.slices += self.train.batch_size
        self.bar.update(self.train.batch_size)

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        shown = {key: float(value) for key, value in logs.items()}
        words = [f"epoch {epoch + 1}/{self.epochs}"]
        # A prior's loss is its nats per code.
        names = [key for key in SHOWN if key in shown]
        if "nats_per_code" in names:
            names = [key for key in names if not key.endswith("loss")]
        words += [f"{SHOWN[key]} {shown[key]:.4f}" for key in names]
        words += [f"usage {shown['codebook_usage']:.0%}"] if "codebook_usage" in shown else []
        tqdm.write("  ".join(words + self._speed(self.epochs - epoch - 1)))

    def _speed(self, epochs_left):
        """Rate of training and time left, in words; none of an epoch too short to tell."""
        if not self.slices:
            return []
        rate = self.slices / (self.ended - self.first_ended)
        validation = time.monotonic() - self.ended
        epoch = self.train.steps_per_epoch * self.train.batch_size / rate + validation
        left = tqdm.format_interval(epoch * epochs_left)
        return [f"{rate:.0f} slices/s", f"{left} left"]

    def close(self):
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()


def _write_history(run, history):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *history])
    for number, values in enumerate(zip(*history.values(), strict=True), start=1):
        writer.writerow([number, *values])
    with atomic_path(run.history_path) as temporary:
        temporary.write_text(text.getvalue())


def draw_history(run: Run, state: TrainingProgress) -> None:
    """Draw the curves of the finished epochs, if there are any, to `figures/training.png`."""
    if state.history:
        training_figure(run.figures / "training.png", state.history)


def _inference_copy(model):
    """A copy without the optimiser: using a model needs neither its state nor its class."""
    bare = type(model).from_config(model.get_config())
    bare.build_from_config(model.get_build_config())
    bare.set_weights(model.get_weights())
    return bare
