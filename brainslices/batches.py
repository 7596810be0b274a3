"""Batches straight from the archive's memory map: nothing larger than a batch is ever copied."""

import functools

import keras
import numpy as np

from brainslices.archive import SliceArchive

__all__ = ["SliceBatches"]


class SliceBatches(keras.utils.PyDataset):
    """Batches of an archive's slices, in an order fixed by the seed, the epoch and the step.

    Args:
        archive: the slices.
        rows: int array of shape (n,), which slices.
        batch_size: slices in a batch.
        seed: int to shuffle each epoch anew and drop its incomplete last batch, or None to give
            all slices in their order.
        mirror: turn each slice left to right with probability 1/2 (with a seed only).
        epoch: which epoch's order; whoever trains moves it on, since Keras ends an epoch once more
            before the first.
        first_step: step of the epoch to begin with, for a training that goes on within it.
    """

    def __init__(
        self,
        archive: SliceArchive,
        rows: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        mirror: bool = False,
        epoch: int = 0,
        first_step: int = 0,
    ):
        super().__init__()
        self.archive, self.rows = archive, rows
        self.batch_size = min(batch_size, len(rows))
        self.seed, self.mirror = seed, mirror
        self.epoch, self.first_step = epoch, first_step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch."""
        if self.seed is None:
            return -(-len(self.rows) // self.batch_size)
        return len(self.rows) // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        """One batch, float32 of shape (batch, rows, cols, 1) in [0, 1], as Keras wants inputs."""
        step = self.first_step + index
        span = slice(step * self.batch_size, (step + 1) * self.batch_size)
        if self.seed is None:
            return (self.archive.load(self.rows[span]),)
        order = _order(len(self.rows), self.seed, self.epoch)
        images = self.archive.load(self.rows[order[span]])
        if self.mirror:
            coins = np.random.default_rng([self.seed, self.epoch, step]).random(len(images)) < 0.5
            # Rows of a slice run from one side of the head to the other.
            images[coins] = images[coins, ::-1]
        return (images,)


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(count)
