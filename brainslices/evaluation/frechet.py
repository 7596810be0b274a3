"""Frechet distance in a fixed, seeded feature space."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from brainslices.errors import InputError
from brainslices.evaluation.pooling import cell_means, halve

__all__ = ["MIN_SIDE", "features", "frechet_distance"]

LAYOUT_CELLS, LAYOUT_FEATURES = 8, 24
TEXTURE_CELLS, TEXTURE_FEATURES = 2, 10
# Contrast about halves from a scale to the next finer one. With these gains each scale varies as
# much between brains, and all scales together about as much as the layout does.
TEXTURE_GAINS = (16, 8, 4, 2)
KERNELS, KERNEL_SIDE = 8, 5
NETWORK_SEED, MIN_SIDE = 2016, 64


def features(images: np.ndarray) -> np.ndarray:
    """Compute features of images by a small random network that is never trained.

    Layout: the means of 8 x 8 cells, projected to 24 numbers. Texture, at each of 4 scales (each
    the 2 x 2 mean of the finer one): the responses to 8 random zero-mean kernels of 5 x 5,
    rectified, averaged over 2 x 2 cells and projected to 10 numbers. Kernels and projections come
    from a fixed seed. There are 64 features, so that a few hundred images give a covariance.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n, 64).

    Raises:
        InputError: if a side is shorter than 64 pixels: the coarsest scale would be too small.
    """
    if np.ndim(images) != 3 or min(images.shape[1:]) < MIN_SIDE:
        raise InputError(
            f"`images` must have shape (n, rows, cols), at least {MIN_SIDE} pixels per side. "
            f"Received: shape {np.shape(images)}."
        )
    network = _random_network()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(lambda image: _image_features(image, *network), images)))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the Frechet distance of two feature sets, each taken as a Gaussian.

    |m1 - m2|^2 + trace(c1 + c2 - 2 (c1 c2)^(1/2)), of means m and covariances c. It grows as the
    sets shrink: compare only distances between equally many images.

    Args:
        first: float array of shape (n, features), n at least 2.
        second: float array of shape (m, features), m at least 2.

    Returns:
        The squared distance, as the field reports it, at least 0.

    Raises:
        InputError: if a set has fewer than 2 rows, or the numbers of features differ.

    Reference:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule", equation 6.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            "`first` and `second` must have shape (n, features) with n at least 2 and the same "
            f"number of features. Received: shapes {first.shape} and {second.shape}."
        )
    mean_term = np.sum(np.square(first.mean(axis=0) - second.mean(axis=0)))
    first_cov, second_cov = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # The eigenvalues of c1 c2 are the squared singular values of c1^(1/2) c2^(1/2).
    cross_term = np.linalg.norm(_matrix_sqrt(first_cov) @ _matrix_sqrt(second_cov), "nuc")
    return float(max(mean_term + np.trace(first_cov) + np.trace(second_cov) - 2 * cross_term, 0))


def _random_network():
    """Kernels (25, 8), layout projection (64, 24) and texture projections (4, 32, 10)."""
    rng = np.random.default_rng(NETWORK_SEED)
    kernels = rng.standard_normal((KERNEL_SIDE**2, KERNELS))
    kernels -= kernels.mean(axis=0)
    kernels /= np.linalg.norm(kernels, axis=0)
    # Orthonormal columns: a projection keeps distances up to one factor, on average.
    layout = np.linalg.qr(rng.standard_normal((LAYOUT_CELLS**2, LAYOUT_FEATURES)))[0]
    shape = (len(TEXTURE_GAINS), TEXTURE_CELLS**2 * KERNELS, TEXTURE_FEATURES)
    textures = np.linalg.qr(rng.standard_normal(shape))[0]
    return kernels, layout, textures * np.reshape(TEXTURE_GAINS, (-1, 1, 1))


def _image_features(image, kernels, layout, textures):
    image = np.asarray(image, "float64")
    parts = [cell_means(image[np.newaxis], LAYOUT_CELLS).ravel() @ layout]
    for scale, texture in enumerate(textures):
        if scale:
            image = halve(image)
        patches = sliding_window_view(image, (KERNEL_SIDE, KERNEL_SIDE))[::2, ::2]
        responses = patches.reshape(1, *patches.shape[:2], -1) @ kernels
        parts.append(cell_means(np.abs(responses), TEXTURE_CELLS).ravel() @ texture)
    return np.concatenate(parts)


def _matrix_sqrt(matrix):
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
