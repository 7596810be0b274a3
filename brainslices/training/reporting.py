"""Callbacks that print: the progress of a training, and a warning of codebook collapse."""

import logging
import time

from tqdm import tqdm

from brainslices.distributed.collectives import is_primary
from brainslices.progress import bar, print_lines
from brainslices.training.callbacks import TrainingCallback

__all__ = ["CollapseWarning", "ProgressReport"]

logger = logging.getLogger(__name__)
# The codebook has collapsed if a smaller share of it was used for so many epochs.
COLLAPSED_USAGE, COLLAPSED_EPOCHS = 0.1, 3
# The scores in an epoch's line, short enough for 100 columns; the history has all of them.
LABELS = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_ssim": "ssim",
    "val_ssim_foreground": "foreground",
    "nats_per_code": "nats per code",
    "val_nats_per_code": "validation",
}


class CollapseWarning(TrainingCallback):
    """Warn if few codes of the codebook were used in each of the last epochs."""

    def on_epoch_end(self, epoch, logs=None):
        if not is_primary():
            return
        usage = self.progress.history.get("codebook_usage", [])[-COLLAPSED_EPOCHS:]
        if len(usage) == COLLAPSED_EPOCHS and max(usage) < COLLAPSED_USAGE:
            logger.warning(
                f"codebook collapse: {usage[-1]:.1%} of the codes were used, and under "
                f"{COLLAPSED_USAGE:.0%} for {COLLAPSED_EPOCHS} epochs. Try --codebook ema, "
                "--kmeans-init, a --restart-threshold of 0.5, a lower --learning-rate, or fewer "
                "--num-embeddings."
            )


class ProgressReport(TrainingCallback):
    """Show a progress bar for the current epoch and print a line for each finished one."""

    bar = None

    def on_epoch_begin(self, epoch, logs=None):
        batches, self.slices = self.batches, 0
        # The first step includes compilation: the rate counts from its end.
        self.first_ended = self.ended = None
        self.bar = bar(
            total=batches.steps_per_epoch * batches.batch_size,
            description=f"epoch {epoch + 1}/{self.config.epochs}",
            unit="slices",
            initial=batches.first_step * batches.batch_size,
            silent=not is_primary(),
        )

    def on_train_batch_end(self, batch, logs=None):
        self.ended = time.monotonic()
        if self.first_ended is None:
            self.first_ended = self.ended
        else:
            self.slices += self.batches.batch_size
        self.bar.update(self.batches.batch_size)

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        names = [name for name in LABELS if name in logs]
        if "nats_per_code" in names:  # it is a prior's loss
            names = [name for name in names if not name.endswith("loss")]
        parts = [f"epoch {epoch + 1}/{self.config.epochs}"]
        parts += [f"{LABELS[name]} {float(logs[name]):.4f}" for name in names]
        if "codebook_usage" in logs:
            parts.append(f"usage {float(logs['codebook_usage']):.0%}")
        if self.slices:  # a single step has no rate
            parts += self._speed(self.config.epochs - epoch - 1)
        print_lines("  ".join(parts))

    def _speed(self, epochs_left):
        rate = self.slices / (self.ended - self.first_ended)
        validation_s = time.monotonic() - self.ended
        epoch_s = self.batches.steps_per_epoch * self.batches.batch_size / rate + validation_s
        return [f"{rate:.0f} slices/s", f"{tqdm.format_interval(epoch_s * epochs_left)} left"]

    def close(self) -> None:
        """Remove the progress bar."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()
