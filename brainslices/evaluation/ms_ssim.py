"""Diversity of samples: pairwise multi-scale SSIM."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import gaussian_filter

from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import WINDOW_RADIUS
from brainslices.progress import track

__all__ = ["ms_ssim", "pairwise_ms_ssim"]
# Wang, Simoncelli, Bovik 2003, section 3.2: the exponents of the five scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = 0.01**2, 0.03**2
# Half the distance of two slices where a head has 32, and an eighth of it.
SAME_LEVEL, SAME_HEIGHT = 1 / 64, 1 / 256


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Multi-scale structural similarity of two pictures.

    Gaussian window, sigma 1.5, 11 pixels wide, data range 1, means over whole windows alone; each
    scale is the 2 x 2 mean of the finer one. Five scales need 176 pixels a side: smaller pictures
    are compared at as many scales as hold a window, the published weights divided by their sum.
    A negative term counts as 0.

    Args:
        first: float array of shape (rows, cols), intensities in [0, 1].
        second: the other picture, of the same shape.

    Returns:
        Similarity in [0, 1], 1 for equal pictures.

    Raises:
        InputError: the shapes differ, or a side is shorter than the window.

    Reference:
        Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality
        assessment", equation 7.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) <= 2 * WINDOW_RADIUS:
        raise InputError(
            "`first` and `second` must be pictures of one shape (rows, cols), at least "
            f"{2 * WINDOW_RADIUS + 1} pixels a side. Received: {first.shape} and {second.shape}."
        )
    scales = 1 + int(math.log2(min(first.shape) / (2 * WINDOW_RADIUS + 1)))
    weights = np.array(SCALE_WEIGHTS[:scales])
    terms = []
    for scale in range(len(weights)):
        if scale:
            first, second = _halved(first), _halved(second)
        luminance, contrast_structure = _similarity_terms(first, second)
        terms.append(np.mean(contrast_structure))
    terms[-1] = np.mean(luminance * contrast_structure)
    return float(np.prod(np.maximum(terms, 0) ** (weights / weights.sum())))


def pairwise_ms_ssim(
    images: np.ndarray,
    positions: Sequence[float],
    subjects: Sequence[str] | None = None,
    *,
    pairs: int = 1000,
    seed: int = 0,
    description: str = "pairs",
) -> float:
    """Mean MS-SSIM of pairs at one level of the head: the lower, the more diverse the pictures.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].
        positions: the position of each in [0, 1]. Two pictures are at one level if theirs differ
            by at most 1 / 64, half the distance of neighbours where a head has 32 slices.
        subjects: whose head each is: pairs are of two subjects then. None makes each its own.
        pairs: how many pairs to compare at most, drawn at random from all there are.
        seed: seed of the draw.
        description: what the progress bar says.

    Raises:
        InputError: no two pictures are at one level.
    """
    chosen = _level_pairs(positions, subjects, pairs, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scored = pool.map(lambda pair: ms_ssim(images[pair[0]], images[pair[1]]), chosen)
        return float(np.mean(list(track(scored, len(chosen), description, "pairs"))))


def _blurred(image):
    """Means over the Gaussian windows that lie whole inside the picture."""
    inner = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return gaussian_filter(image, 1.5, radius=WINDOW_RADIUS)[inner, inner]


def _similarity_terms(first, second):
    """Luminance and contrast-structure maps. Reference: Wang et al. 2004, equations 6 and 13."""
    mean_first, mean_second = _blurred(first), _blurred(second)
    product = mean_first * mean_second
    squares = mean_first**2 + mean_second**2
    covariance = _blurred(first * second) - product
    variances = _blurred(first**2 + second**2) - squares
    luminance = (2 * product + LUMINANCE_CONSTANT) / (squares + LUMINANCE_CONSTANT)
    return luminance, (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)


def _halved(image):
    """2 x 2 means; an odd side's last line stands for its missing neighbour."""
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)), mode="edge")
    return image.reshape(-(-rows // 2), 2, -(-cols // 2), 2).mean(axis=(1, 3))


def _level_pairs(positions, subjects, pairs, seed):
    positions = np.asarray(positions, "float64")
    # Sums of fractions such as k / 31 must not decide about equality.
    level = np.abs(positions[:, np.newaxis] - positions) <= SAME_LEVEL + 1e-9
    if subjects is not None:
        subjects = np.unique(subjects, return_inverse=True)[1]
        level &= subjects[:, np.newaxis] != subjects
    found = np.argwhere(np.triu(level, k=1))
    if not len(found):
        whose = "" if subjects is None else " of two subjects"
        mend = "Sample more slices, or several at one position"
        if subjects is not None:
            mend += ", or make an archive of more subjects"
        raise InputError(
            f"Diversity wants at least two slices{whose} at one level of the head (positions at "
            f"most 1/64 apart). Received: {len(positions)} slices without such a pair. {mend}."
        )
    generator = np.random.default_rng(seed)
    return generator.permutation(found)[:pairs]
