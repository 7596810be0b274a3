"""Batches in an order that the seed, the epoch and the step fix; nothing larger is ever copied."""

import abc
import functools

import keras
import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError

__all__ = ["Batches", "SliceBatches", "largest_even_count"]


def largest_even_count(count: int, devices: int) -> int:
    """As many of some items as devices can share evenly.

    Raises:
        InputError: if there is not one for each.
    """
    if count < devices:
        raise InputError(
            f"{count} items cannot be shared by {devices} devices: there must be one for each. "
            "Hide some devices, or make an archive with more slices in every split."
        )
    return count - count % devices


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
        devices: number of devices that share each batch evenly; an incomplete last batch is cut.
        shard: (index, count) of the process, where several train together: each loads its shard of
            every batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        first_step: int = 0,
        devices: int = 1,
        shard: tuple[int, int] = (0, 1),
    ):
        super().__init__()
        even = largest_even_count(count, devices)
        self.count = even if seed is None else count
        self.batch_size = min(batch_size, even)
        self.shard = shard
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
        """One batch, or this process's shard of it: `load`'s in a tuple of its own."""
        step = self.first_step + index
        span = slice(step * self.batch_size, (step + 1) * self.batch_size)
        if self.seed is None:
            chosen, draws = np.arange(self.count)[span], None
        else:
            chosen = _order(self.count, self.seed, self.epoch)[span]
            chance = np.random.default_rng([self.seed, self.epoch, step])
            # For the whole batch, so that they do not depend on who loads which shard.
            draws = self.draw(len(chosen), chance)
        shard, shards = self.shard
        size = len(chosen) // shards
        own = slice(shard * size, (shard + 1) * size)
        return (self.load(chosen[own], None if draws is None else draws[own]),)

    @abc.abstractmethod
    def draw(self, count: int, chance: np.random.Generator) -> np.ndarray:
        """What a step draws by chance for its items.

        Args:
            count: number of items.
            chance: generator of this step's draws.

        Returns:
            Array of shape (count,), for `load`.
        """

    @abc.abstractmethod
    def load(self, chosen: np.ndarray, draws: np.ndarray | None):
        """The model's inputs for some items.

        Args:
            chosen: int array, numbers of the items.
            draws: what `draw` drew for them; None where items are given as they are.
        """


class SliceBatches(Batches):
    """Batches of an archive's slices, float32 of shape (batch, rows, cols, 1) in [0, 1].

    Args:
        archive: the slices.
        rows: int array of shape (n,), which slices.
        batch_size: slices in a batch.
        seed: as `Batches`.
        mirror: turn each slice left to right with probability 1/2 (with a seed only).
        **options: `epoch`, `first_step`, `devices` and `shard`, as `Batches`.
    """

    def __init__(
        self,
        archive: SliceArchive,
        rows: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        mirror: bool = False,
        **options,
    ):
        super().__init__(len(rows), batch_size, seed, **options)
        self.archive, self.rows, self.mirror = archive, rows, mirror

    def draw(self, count, chance):
        return chance.random(count) < 0.5

    def load(self, chosen, draws):
        images = self.archive.load(self.rows[chosen])
        if self.mirror and draws is not None:
            # Rows of a slice run from one side of the head to the other.
            images[draws] = images[draws, ::-1]
        return images


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(count)
