"""Density and coverage of samples, by nearest neighbours among real images."""

import math

import numpy as np
from scipy.spatial.distance import cdist

__all__ = ["density_and_coverage"]

NEIGHBOURS = 5  # as in the paper's experiments


def density_and_coverage(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Compute how closely samples lie to real images, and how many real images they reach.

    A ball around each real image reaches to its k-th nearest other one. k is 5, or the number of
    all others where that is less.

    Args:
        samples: features of the samples, float array of shape (n, features), n at least 1.
        real: features of the real images, float array of shape (m, features).

    Returns:
        The density, the mean number of balls around a sample, divided by k: 1 is expected of
        samples from the distribution of the real images; samples gathered where real images are
        dense exceed it. And the coverage, the share of balls with a sample in them, in [0, 1]. Both
        are NaN with fewer than 2 real images.

    Reference:
        Naeem et al. 2020, arXiv 2002.09797, equations 4 and 6.
    """
    neighbours = min(NEIGHBOURS, len(real) - 1)
    if neighbours < 1:
        return math.nan, math.nan
    # Sorted, an image's distance to itself comes first.
    radii = np.sort(cdist(real, real), axis=1)[:, neighbours]
    is_inside = cdist(samples, real) <= radii
    return float(is_inside.sum(axis=1).mean() / neighbours), float(is_inside.any(axis=0).mean())
