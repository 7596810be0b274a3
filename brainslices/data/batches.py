"""Batches in an order determined by seed, epoch and step, loaded one at a time."""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError
from brainslices.progress import bar

__all__ = ["Batches", "SliceBatches", "in_batches", "largest_even_count", "padded_batches"]


def largest_even_count(count: int, devices: int) -> int:
    """Return the largest multiple of `devices` that is at most `count`.

    Raises:
        InputError: if there are fewer items than devices.

    Example:
        >>> largest_even_count(22, 4)
        20
    """
    if count < devices:
        raise InputError(
            f"`count` must be at least 1 per device. Received: count={count}, devices={devices}. "
            "Hide some devices, or prepare an archive with more slices in every split."
        )
    return count - count % devices


def padded_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Divide items into batches of one size, because another size would be compiled again.

    Args:
        count: number of items.
        batch_size: size of every batch; the last item pads the last one.

    Yields:
        Indices of the items of a batch, int array of shape (batch_size,), and how many of them are
        not padding.

    Raises:
        InputError: if there are no items, or the size is under 1.

    Example:
        >>> [(indices.tolist(), size) for indices, size in padded_batches(4, 3)]
        [([0, 1, 2], 3), ([3, 3, 3], 1)]
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"`{name}` must be at least 1. Received: {name}={value}.")
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, count - 1), min(batch_size, count - start)


def in_batches(
    function: Callable, batch_size: int, description: str | None, *arrays: np.ndarray
) -> np.ndarray:
    """Apply a function to batches of one size, the last one padded, with a progress bar.

    Args:
        function: batches of `arrays` -> array or tensor with an entry for each entry of a batch.
        batch_size: entries at a time.
        description: label of the progress bar; None shows none.
        *arrays: equally long.

    Returns:
        The results of all entries.

    Raises:
        InputError: as `padded_batches`.
    """
    count, results = len(arrays[0]), []
    with bar(count, description or "", "slices", silent=description is None) as progress:
        for rows, size in padded_batches(count, min(batch_size, count)):
            results.append(np.asarray(function(*(array[rows] for array in arrays)))[:size])
            progress.update(size)
    return np.concatenate(results)


class Batches(keras.utils.PyDataset, abc.ABC):
    """Batches of items as one-tuples of the model's inputs, the form that Keras expects.

    Args:
        count: number of items.
        batch_size: items in a batch.
        seed: int to shuffle every epoch and drop its incomplete last batch, or None to yield all
            items in order, without augmentation.
        epoch: epoch whose order is used. The training loop advances it, because Keras signals
            the end of an epoch once more before the first.
        first_step: step of the epoch to start at, to resume within an epoch.
        devices: number of devices that share each batch evenly; a remainder is dropped.
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
        """Number of batches in a whole epoch."""
        if self.seed is None:
            return -(-self.count // self.batch_size)
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __getitem__(self, index: int) -> tuple:
        """Load one batch, or this process's shard of it, as a one-tuple."""
        step = self.first_step + index
        span = slice(step * self.batch_size, (step + 1) * self.batch_size)
        if self.seed is None:
            indices, augmentation = np.arange(self.count)[span], None
        else:
            indices = _epoch_order(self.count, self.seed, self.epoch)[span]
            rng = np.random.default_rng([self.seed, self.epoch, step])
            # Sampled for the whole batch, so that it does not depend on the number of processes.
            augmentation = self.sample_augmentation(len(indices), rng)
        shard, shards = self.shard
        size = len(indices) // shards
        own = slice(shard * size, (shard + 1) * size)
        return (self.load(indices[own], None if augmentation is None else augmentation[own]),)

    @abc.abstractmethod
    def sample_augmentation(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Sample the random augmentation of a step's items.

        Args:
            count: number of items.
            rng: generator of this step.

        Returns:
            Array with an entry for each item, for `load`.
        """

    @abc.abstractmethod
    def load(self, indices: np.ndarray, augmentation: np.ndarray | None) -> Any:
        """Load the model's inputs for some items.

        Args:
            indices: int array of shape (n,), which items.
            augmentation: their part of `sample_augmentation`; None for no augmentation.
        """


class SliceBatches(Batches):
    """Batches of an archive's slices, float32 of shape (batch, rows, cols, 1) in [0, 1].

    Args:
        archive: the slices.
        rows: int array of shape (n,), row numbers of the slices in the archive.
        batch_size: slices in a batch.
        seed: as in `Batches`.
        mirror: random left-right flip with probability 0.5 (only with a seed).
        **options: `epoch`, `first_step`, `devices` and `shard`, as in `Batches`.
    """

    def __init__(
        self,
        archive: SliceArchive,
        rows: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        mirror: bool = False,
        **options: Any,
    ):
        super().__init__(len(rows), batch_size, seed, **options)
        self.archive, self.rows, self.mirror = archive, rows, mirror

    def sample_augmentation(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Sample which slices are flipped, bool of shape (count,)."""
        return rng.random(count) < 0.5

    def load(self, indices: np.ndarray, augmentation: np.ndarray | None) -> np.ndarray:
        """Load slices, float32 of shape (n, rows, cols, 1) in [0, 1]."""
        images = self.archive.load(self.rows[indices])
        if self.mirror and augmentation is not None:
            # The rows of a slice run from one side of the head to the other.
            images[augmentation] = images[augmentation, ::-1]
        return images


@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
