"""Batches in an order that the seed, the epoch and the step fix; nothing larger is ever copied."""

import abc
import functools

import keras
import numpy as np

from brainslices.archive import SliceArchive

__all__ = ["Batches", "SliceBatches"]


class Batches(keras.utils.PyDataset, abc.ABC):
    """Batches of `count` items, each a one-tuple of the model's inputs, as Keras wants them.

    Args:
        count: number of items.
        batch_size: items in a batch.
        seed: int to shuffle each epoch anew and drop its incomplete last batch, or None to give
            all items in their order.
        epoch: which epoch's order; whoever trains moves it on, since Keras ends an epoch once more
            before the first.
        first_step: step of the epoch to begin with, for a training that goes on within it.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        first_step: int = 0,
    ):
        super().__init__()
        self.count, self.batch_size = count, min(batch_size, count)
        self.seed, self.epoch, self.first_step = seed, epoch, first_step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch."""
        if self.seed is None:
            return -(-self.count // self.batch_size)
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __getitem__(self, index: int) -> tuple:
        """One batch, `load`'s in a tuple of its own."""
        step = self.first_step + index
        span = slice(step * self.batch_size, (step + 1) * self.batch_size)
        if self.seed is None:
            return (self.load(np.arange(self.count)[span], None),)
        order = _order(self.count, self.seed, self.epoch)
        return (self.load(order[span], np.random.default_rng([self.seed, self.epoch, step])),)

    @abc.abstractmethod
    def load(self, chosen: np.ndarray, chance: np.random.Generator | None):
        """The model's inputs for some items.

        Args:
            chosen: int array, numbers of the items.
            chance: generator of this step's draws; None where items are given as they are.
        """


class SliceBatches(Batches):
    """Batches of an archive's slices, float32 of shape (batch, rows, cols, 1) in [0, 1].

    Args:
        archive: the slices.
        rows: int array of shape (n,), which slices.
        batch_size: slices in a batch.
        seed: as `Batches`.
        mirror: turn each slice left to right with probability 1/2 (with a seed only).
        **place: `epoch` and `first_step`, as `Batches`.
    """

    def __init__(
        self,
        archive: SliceArchive,
        rows: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        mirror: bool = False,
        **place,
    ):
        super().__init__(len(rows), batch_size, seed, **place)
        self.archive, self.rows, self.mirror = archive, rows, mirror

    def load(self, chosen, chance):
        images = self.archive.load(self.rows[chosen])
        if self.mirror and chance is not None:
            coins = chance.random(len(images)) < 0.5
            # Rows of a slice run from one side of the head to the other.
            images[coins] = images[coins, ::-1]
        return images


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(count)
