"""Restoration: surprising codes are resampled, and the image compared with the original."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pixelcnn.sampling import BATCH_SIZE, Sampler

__all__ = ["MASKED_QUANTILE", "restoration_map", "restore"]

# Codes above this quantile of the surprise of validation codes are resampled.
MASKED_QUANTILE = 0.98
# Mean difference of a restoration that equals the original to the rounding of 8 bits.
SMALLEST_DIFFERENCE = 1 / 512


def restore(
    sampler: Sampler,
    decoder: Any,
    observed: np.ndarray,
    positions: np.ndarray,
    count: int,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """Resample the masked codes of slices and decode the grids.

    Args:
        sampler: samples the codes.
        decoder: object with `decode_codes(codes)`, such as a `VQVAE`.
        observed: int array of shape (n, r, c), codes, or `MASKED` where they are resampled.
        positions: float array of shape (n,), in [0, 1], or with conditions.
        count: restorations of each slice.
        seed: seed of the samples.
        batch_size: grids sampled at a time.

    Yields:
        For each slice its restorations, float32 array of shape (count, rows, cols), in [0, 1].
    """
    grids, repeated = np.repeat(observed, count, axis=0), np.repeat(positions, count, axis=0)
    pending: list[np.ndarray] = []
    for batch in sampler.batches(repeated, seed, batch_size, grids):
        pending.extend(np.asarray(decoder.decode_codes(batch["codes"]), "float32")[..., 0])
        while len(pending) >= count:
            yield np.stack(pending[:count])
            del pending[:count]


def restoration_map(original: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Compute the mean absolute difference between a slice and its restorations.

    The weight of a restoration is inversely proportional to its mean difference.

    Args:
        original: float array of shape (rows, cols), in [0, 1].
        restored: float array of shape (count, rows, cols), in [0, 1].

    Returns:
        float32 array of shape (rows, cols), in [0, 1].

    Reference:
        Marimont and Tarroni 2021, arXiv 2012.06765, which weights by a softmax.
    """
    differences = np.abs(restored - original)
    weights = 1 / np.maximum(differences.mean(axis=(1, 2)), SMALLEST_DIFFERENCE)
    return np.tensordot(weights / weights.sum(), differences, axes=1).astype("float32")
