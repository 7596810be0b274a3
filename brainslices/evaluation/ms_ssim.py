"""Diversity of samples: pairwise multi-scale SSIM."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import gaussian_filter

from brainslices.errors import InputError
from brainslices.evaluation.pooling import C1, C2, RADIUS, SIGMA, SMALLEST_SIDE, halve
from brainslices.progress import track

__all__ = ["ms_ssim", "pairwise_ms_ssim"]

# Wang, Simoncelli, Bovik 2003, section 3.2: the exponents of the five scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the multi-scale structural similarity of two images.

    Gaussian window, sigma 1.5, 11 pixels wide, data range 1, means over whole windows alone; each
    scale is the 2 x 2 mean of the finer one. Five scales need 176 pixels per side: smaller images
    are compared at as many scales as hold a window, with the published weights divided by their
    sum. A negative term counts as 0.

    Args:
        first: float array of shape (rows, cols), intensities in [0, 1].
        second: likewise, of the same shape.

    Returns:
        Similarity in [0, 1], 1 for equal images.

    Raises:
        InputError: if the shapes differ, or a side is shorter than the window.

    Reference:
        Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality
        assessment", equation 7.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < SMALLEST_SIDE:
        raise InputError(
            "`first` and `second` must be images of the same shape (rows, cols), at least "
            f"{SMALLEST_SIDE} pixels per side. Received: {first.shape} and {second.shape}."
        )
    weights = np.array(SCALE_WEIGHTS[: 1 + int(math.log2(min(first.shape) / SMALLEST_SIDE))])
    terms = []
    for scale in range(len(weights)):
        if scale:
            first, second = halve(first), halve(second)
        luminance, contrast_structure = _similarity_terms(first, second)
        terms.append(np.mean(contrast_structure))
    terms[-1] = np.mean(luminance * contrast_structure)
    return float(np.prod(np.maximum(terms, 0) ** (weights / weights.sum())))


def pairwise_ms_ssim(
    images: np.ndarray, pairs: np.ndarray, description: str = "pairs"
) -> np.ndarray:
    """Compute the MS-SSIM of pairs of images: the lower, the more diverse they are.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].
        pairs: int array of shape (pairs, 2), indices into `images`.
        description: label of the progress bar.

    Returns:
        float64 array of shape (pairs,).
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scores = pool.map(lambda pair: ms_ssim(images[pair[0]], images[pair[1]]), pairs)
        return np.array(list(track(scores, len(pairs), description, "pairs")))


def _window_mean(image):
    """Gaussian mean over the windows that lie entirely inside the image."""
    inner = slice(RADIUS, -RADIUS)
    return gaussian_filter(image, SIGMA, radius=RADIUS)[inner, inner]


def _similarity_terms(first, second):
    """Luminance and contrast-structure maps. Reference: Wang et al. 2004, equations 6 and 13."""
    mean_first, mean_second = _window_mean(first), _window_mean(second)
    product = mean_first * mean_second
    squares = mean_first**2 + mean_second**2
    covariance = _window_mean(first * second) - product
    variances = _window_mean(first**2 + second**2) - squares
    luminance = (2 * product + C1) / (squares + C1)
    return luminance, (2 * covariance + C2) / (variances + C2)
