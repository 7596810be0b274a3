"""Frechet distance in a fixed, seeded feature space."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from brainslices.errors import InputError
from brainslices.evaluation.ms_ssim import _halved

__all__ = ["features", "frechet_distance"]
LAYOUT_CELLS, LAYOUT_FEATURES = 8, 24
TEXTURE_CELLS, TEXTURE_FEATURES = 2, 10
# Contrast about halves from a scale to the next finer one; so each varies as much between heads,
# and all together about as much as the layout does.
TEXTURE_GAINS = (16, 8, 4, 2)
KERNELS, KERNEL_SIDE = 8, 5
NETWORK_SEED, SMALLEST_SIDE = 2016, 64


def features(images: np.ndarray) -> np.ndarray:
    """Features of pictures by a small random network that is never trained.

    Layout: the means of 8 x 8 cells, mixed down to 24 numbers. Texture, at each of 4 scales (each
    the 2 x 2 mean of the finer one): the responses to 8 random kernels of 5 x 5 without a mean,
    rectified, averaged over 2 x 2 cells and mixed down to 10 numbers. Kernels and mixtures come
    from one fixed seed. 64 numbers, so that a few hundred pictures still have a covariance.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n, 64).

    Raises:
        InputError: a side is shorter than 64 pixels: the coarsest scale would be too small.
    """
    if np.ndim(images) != 3 or min(images.shape[1:]) < SMALLEST_SIDE:
        raise InputError(
            f"`images` must have shape (n, rows, cols), at least {SMALLEST_SIDE} pixels a side. "
            f"Received: shape {np.shape(images)}."
        )
    kernels, layout_mixture, texture_mixtures = _network()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(
            lambda image: _feature_row(image, kernels, layout_mixture, texture_mixtures), images
        )
        return np.stack(list(rows))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features, each taken as a Gaussian.

    |m1 - m2|^2 + trace(c1 + c2 - 2 (c1 c2)^(1/2)), of means m and covariances c. It grows as the
    sets shrink: compare only distances between equally many pictures.

    Args:
        first: float array of shape (n, features), n at least 2.
        second: float array of shape (m, features).

    Returns:
        The distance, squared as the field reports it, at least 0.

    Raises:
        InputError: a set has fewer than 2 rows, or the numbers of features differ.

    Reference:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule", equation 6.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            "Feature sets must have shape (n, features) with n at least 2 and one number of "
            f"features. Received: shapes {first.shape} and {second.shape}."
        )
    shift = np.sum(np.square(first.mean(axis=0) - second.mean(axis=0)))
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # The eigenvalues of c1 c2 are the squared singular values of c1^(1/2) c2^(1/2).
    cross = np.linalg.norm(_symmetric_root(one) @ _symmetric_root(other), "nuc")
    return float(max(shift + np.trace(one) + np.trace(other) - 2 * cross, 0))


def _cell_means(images, cells):
    """Means over cells x cells about equal parts of axes 1 and 2."""
    for axis in (1, 2):
        size = images.shape[axis]
        starts = np.arange(cells) * size // cells
        shape = [cells if each == axis else 1 for each in range(images.ndim)]
        widths = np.diff(np.append(starts, size)).reshape(shape)
        images = np.add.reduceat(images, starts, axis=axis) / widths
    return images


def _network():
    generator = np.random.default_rng(NETWORK_SEED)
    kernels = generator.standard_normal((KERNEL_SIDE**2, KERNELS))
    kernels -= kernels.mean(axis=0)
    kernels /= np.linalg.norm(kernels, axis=0)
    # Orthonormal columns: a mixture keeps distances up to one factor, on average.
    layout = np.linalg.qr(generator.standard_normal((LAYOUT_CELLS**2, LAYOUT_FEATURES)))[0]
    shape = (len(TEXTURE_GAINS), TEXTURE_CELLS**2 * KERNELS, TEXTURE_FEATURES)
    textures = np.linalg.qr(generator.standard_normal(shape))[0]
    return kernels, layout, textures * np.reshape(TEXTURE_GAINS, (-1, 1, 1))


def _feature_row(image, kernels, layout_mixture, texture_mixtures):
    image = np.asarray(image, "float64")
    row = [_cell_means(image[np.newaxis], LAYOUT_CELLS).ravel() @ layout_mixture]
    for scale, mixture in enumerate(texture_mixtures):
        if scale:
            image = _halved(image)
        patches = sliding_window_view(image, (KERNEL_SIDE, KERNEL_SIDE))[::2, ::2]
        responses = patches.reshape(1, *patches.shape[:2], -1) @ kernels
        row.append(_cell_means(np.abs(responses), TEXTURE_CELLS).ravel() @ mixture)
    return np.concatenate(row)


def _symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
