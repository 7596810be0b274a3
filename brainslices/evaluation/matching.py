"""Which slices are compared: real ones at the positions of samples, and pairs at one position."""

from collections.abc import Sequence

import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError

__all__ = ["match_rows", "sample_pairs"]

# Half the distance of neighbouring slices where a brain has 32, and an eighth of it.
MAX_PAIR_DISTANCE, POSITION_TOLERANCE = 1 / 64, 1 / 256
MAX_PAIRS = 1000


def match_rows(
    archive: SliceArchive, split: str, positions: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Choose for each position a slice of a split there, rotating over the subjects.

    A slice is repeated only when all others as near have been taken.

    Args:
        archive: the slice archive.
        split: the split to take from.
        positions: float array of shape (n,). The nearest slice is taken; those less than 1 / 256
            further off count as equally near.
        seed: breaks ties.

    Returns:
        Row numbers in the archive, int64 of shape (n,).

    Raises:
        InputError: if the split is empty.
    """
    rows = archive.indices(split)
    row_positions = np.array([archive.index[row].position for row in rows])
    _, owners = np.unique([archive.index[row].subject for row in rows], return_inverse=True)
    tie_breaks = np.random.default_rng(seed).random(len(rows))
    row_uses, subject_uses = np.zeros(len(rows), int), np.zeros(owners.max() + 1, int)
    matched = []
    for position in positions:
        distances = np.abs(row_positions - position)
        near = np.flatnonzero(distances < distances.min() + POSITION_TOLERANCE)
        priority = np.lexsort((tie_breaks[near], subject_uses[owners[near]], row_uses[near]))
        best = near[priority[0]]
        row_uses[best] += 1
        subject_uses[owners[best]] += 1
        matched.append(rows[best])
    return np.array(matched, "int64")


def sample_pairs(
    positions: Sequence[float],
    subjects: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Sample at most 1000 pairs of slices at the same position, at most 1 / 64 apart.

    Args:
        positions: float array of shape (n,) in [0, 1].
        subjects: subject of each slice: the two of a pair differ in it. None allows any pair.
        seed: seed of the sampling.

    Returns:
        int64 array of shape (pairs, 2), indices into `positions`.

    Raises:
        InputError: if there is no such pair.
    """
    values = np.asarray(positions, "float64")
    # The tolerance absorbs the rounding of fractions such as k / 31.
    is_pair = np.abs(values[:, np.newaxis] - values) <= MAX_PAIR_DISTANCE + 1e-9
    repair = "Sample more slices, or several at one position"
    if subjects is not None:
        owners = np.unique(subjects, return_inverse=True)[1]
        is_pair &= owners[:, np.newaxis] != owners
        repair += ", or make an archive of more subjects"
    pairs = np.argwhere(np.triu(is_pair, k=1))
    if not len(pairs):
        of_subjects = "" if subjects is None else " of two subjects"
        raise InputError(
            f"Diversity needs at least two slices{of_subjects} at one position (at most 1/64 "
            f"apart). Received: {len(positions)} slices without such a pair. {repair}."
        )
    return np.random.default_rng(seed).permutation(pairs)[:MAX_PAIRS]
