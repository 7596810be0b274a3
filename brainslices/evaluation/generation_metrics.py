"""Scores of sampled slices: diversity, memorisation and similarity to real slices.

Each score comes with a baseline: the same score of real slices at the same positions.
"""

import math
from collections.abc import Sequence

import numpy as np

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.density_coverage import density_and_coverage
from brainslices.evaluation.frechet import MIN_SIDE, features, frechet_distance
from brainslices.evaluation.matching import match_rows, sample_pairs
from brainslices.evaluation.ms_ssim import pairwise_ms_ssim
from brainslices.evaluation.nearest import NearestTrain

__all__ = [
    "check_comparable",
    "evaluate_samples",
    "foreground_area_difference",
    "intensity_quantile_difference",
]

QUANTILES = np.linspace(0.05, 0.95, 19)


def foreground_area_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the absolute difference of two sets' mean shares of foreground pixels.

    Args:
        first: float array of shape (n, rows, cols) in [0, 1].
        second: float array of shape (m, rows, cols) in [0, 1].
    """
    areas = [np.mean(images > FOREGROUND_THRESHOLD) for images in (first, second)]
    return float(abs(areas[0] - areas[1]))


def intensity_quantile_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the mean absolute difference of two sets' mean foreground intensity quantiles.

    The quantiles are 0.05, 0.10 .. 0.95. Images without foreground are left out; the result is
    NaN where a set has no others.

    Args:
        first: float array of shape (n, rows, cols) in [0, 1].
        second: float array of shape (m, rows, cols) in [0, 1].
    """
    means = []
    for images in (first, second):
        foregrounds = [image[image > FOREGROUND_THRESHOLD] for image in images]
        quantiles = [np.quantile(pixels, QUANTILES) for pixels in foregrounds if pixels.size]
        if not quantiles:
            return math.nan
        means.append(np.mean(quantiles, axis=0))
    return float(np.mean(np.abs(means[0] - means[1])))


def check_comparable(positions: Sequence[float], archive: SliceArchive, seed: int = 0) -> None:
    """Check, before any sampling, that `evaluate_samples` can score samples at these positions.

    Args:
        positions: position of each sample, float array of shape (n,).
        archive: the slice archive that the models were trained on.
        seed: as in `evaluate_samples`.

    Raises:
        InputError: as in `evaluate_samples`.
    """
    _choose_comparisons(positions, archive, seed)


def evaluate_samples(
    images: np.ndarray, positions: Sequence[float], archive: SliceArchive, *, seed: int = 0
) -> dict:
    """Score samples, with the scores of real slices at the same positions as baselines.

    Args:
        images: float32 array of shape (n, rows, cols) in [0, 1], of the archive's size.
        positions: position of each sample, float array of shape (n,).
        archive: the slice archive that the models were trained on.
        seed: chooses the real slices and the pairs.

    Returns:
        `pairwise_ms_ssim` (baseline: training slices of different subjects),
        `nearest_train_ssim` (test slices), `frechet_distance`, `density`, `coverage`,
        `foreground_area_difference` and `intensity_quantile_difference` (each to the test slices;
        baseline: as many training slices as samples), each with its baseline as `_real`;
        `samples`, their number; and `nearest`, the row and SSIM arrays of `NearestTrain`.

    Raises:
        InputError: if there are fewer than 2 samples, no two at one position, the shape is not
            the archive's, or the archive has no training or no test slices.
    """
    images = np.asarray(images, "float32")
    if len(positions) != len(images):
        raise InputError(
            "`positions` must hold one entry for each of `images`. Received: "
            f"{len(positions)} positions for {len(images)} images."
        )
    train_rows, test_rows, pairs, real_pairs = _choose_comparisons(positions, archive, seed)
    train, test = (archive.load(rows)[..., 0] for rows in (train_rows, test_rows))
    unique_test = archive.load(np.unique(test_rows))[..., 0]
    find_nearest = NearestTrain(archive)
    nearest = find_nearest(images, "nearest of samples")
    _, real_scores = find_nearest(unique_test, "nearest of test slices")
    return {
        "pairwise_ms_ssim": pairwise_ms_ssim(images, pairs, "pairs of samples"),
        "pairwise_ms_ssim_real": pairwise_ms_ssim(train, real_pairs, "pairs of real slices"),
        "nearest_train_ssim": float(nearest[1].mean()),
        "nearest_train_ssim_real": float(real_scores.mean()),
        **_distances_to_test(images, train, test, unique_test),
        "samples": len(images),
        "nearest": nearest,
    }


def _choose_comparisons(positions, archive, seed):
    """Training and test rows at the samples' positions, pairs of samples and of training slices."""
    if len(positions) < 2:
        raise InputError(
            f"`positions` must hold at least 2 samples to evaluate. Received: {len(positions)}."
        )
    if min(archive.image_shape) < MIN_SIDE:
        raise InputError(
            f"`archive` must have slices of at least {MIN_SIDE} x {MIN_SIDE} pixels to evaluate "
            f"samples. Received: {archive.path} with {archive.image_shape}. Sample without "
            "--evaluate, or train on larger slices."
        )
    train_rows = match_rows(archive, "train", positions, seed)
    test_rows = match_rows(archive, "test", positions, seed)
    subjects = [archive.index[row].subject for row in train_rows]
    pairs = sample_pairs(positions, seed=seed), sample_pairs(positions, subjects, seed=seed)
    return train_rows, test_rows, *pairs


def _distances_to_test(images, train, test, unique_test):
    test_features, unique_features = features(test), features(unique_test)
    distances = {}
    for suffix, compared in (("", images), ("_real", train)):
        compared_features = features(compared)
        density, coverage = density_and_coverage(compared_features, unique_features)
        distances |= {
            f"frechet_distance{suffix}": frechet_distance(compared_features, test_features),
            f"density{suffix}": density,
            f"coverage{suffix}": coverage,
            f"foreground_area_difference{suffix}": foreground_area_difference(compared, test),
            f"intensity_quantile_difference{suffix}": intensity_quantile_difference(compared, test),
        }
    return distances
