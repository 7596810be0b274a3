"""Scores of sampled slices: diversity, memorisation and similarity to real slices.

Each score comes with a baseline, the same score of real slices at the same positions, and both with
a 95 % interval.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import jackknife_interval, named_interval
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
DISTANCES = (
    "frechet_distance",
    "density",
    "coverage",
    "foreground_area_difference",
    "intensity_quantile_difference",
)
UNBOUNDED = ("frechet_distance", "density")  # all other scores are at most 1


class _Slices(NamedTuple):
    """Images (n, rows, cols), and the subject of each; a sample is a subject of its own."""

    images: np.ndarray
    subjects: np.ndarray


def foreground_area_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the absolute difference of two sets' mean shares of foreground pixels.

    Args:
        first: float array of shape (n, rows, cols) in [0, 1].
        second: float array of shape (m, rows, cols) in [0, 1].
    """
    return _mean_difference(*map(_foreground_areas, (first, second)))


def intensity_quantile_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the mean absolute difference of two sets' mean foreground intensity quantiles.

    The quantiles are 0.05, 0.10 .. 0.95. Images without foreground are left out; the result is
    NaN where a set has no others.

    Args:
        first: float array of shape (n, rows, cols) in [0, 1].
        second: float array of shape (m, rows, cols) in [0, 1].
    """
    return _mean_difference(*map(_intensity_quantiles, (first, second)))


def _foreground_areas(images):
    """Shares of foreground pixels, (n, 1)."""
    return np.mean(images > FOREGROUND_THRESHOLD, axis=(1, 2))[:, np.newaxis]


def _intensity_quantiles(images):
    """Quantiles of the foreground, (n, 19); NaN for an image without."""
    foregrounds = [image[image > FOREGROUND_THRESHOLD] for image in images]
    none = np.full(len(QUANTILES), math.nan)
    return np.array([np.quantile(x, QUANTILES) if x.size else none for x in foregrounds])


def _mean_difference(first, second):
    """Mean absolute difference of the means of two sets, over the rows that are not NaN."""
    present = [values[np.isfinite(values[:, 0])] for values in (first, second)]
    if not all(map(len, present)):
        return math.nan
    return float(np.mean(np.abs(present[0].mean(axis=0) - present[1].mean(axis=0))))


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
        baseline: as many training slices as samples), each with its baseline as `_real` and, of
        both, the ends of the interval as `_low` and `_high`: by subject, where each sample counts
        as one, and NaN where there is one subject. `samples`, their number; and `nearest`, the row
        and SSIM arrays of `NearestTrain`.

    Raises:
        InputError: if there are fewer than 2 samples, no two at one position, the shape is not
            the archive's, or the archive has no training or no test slices.
    """
    images = np.asarray(images, "float32")
    _check_lengths(images, positions)
    train_rows, test_rows, pairs, real_pairs = _choose_comparisons(positions, archive, seed)
    unique_rows, matched = np.unique(test_rows, return_inverse=True)
    samples = _Slices(images, np.arange(len(images)))
    train, test = (_load(archive, rows) for rows in (train_rows, unique_rows))
    find_nearest = NearestTrain(archive)
    nearest = find_nearest(images, "nearest of samples")
    _, real_nearest = find_nearest(test.images, "nearest of test slices")
    measured_test = _measure(test.images)
    return {
        **_diversity(samples, pairs, "pairs of samples", ""),
        **_diversity(train, real_pairs, "pairs of real slices", "_real"),
        **_mean("nearest_train_ssim", nearest[1], samples),
        **_mean("nearest_train_ssim_real", real_nearest, test),
        **_distances(samples, test.subjects, measured_test, matched, ""),
        **_distances(train, test.subjects, measured_test, matched, "_real"),
        "samples": len(images),
        "nearest": nearest,
    }


def _check_lengths(images, positions):
    if len(positions) != len(images):
        raise InputError(
            "`positions` must hold one entry for each of `images`. Received: "
            f"{len(positions)} positions for {len(images)} images."
        )


def _choose_comparisons(positions, archive, seed):
    """Training and test rows at the samples' positions, pairs of samples and of training slices."""
    if len(positions) < 2:
        raise InputError(
            "`positions` must hold at least 2 samples to evaluate them (--count 2 or more). "
            f"Received: {len(positions)}."
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


def _load(archive, rows):
    subjects = np.array([archive.index[row].subject for row in rows])
    return _Slices(archive.load(rows)[..., 0], subjects)


def _diversity(slices, pairs, description, suffix):
    """MS-SSIM between the two slices of pairs."""
    scores = pairwise_ms_ssim(slices.images, pairs, description)

    def statistic(kept):
        remaining = scores[kept[pairs].all(axis=1)]
        return [remaining.mean() if len(remaining) else math.nan]

    return _with_intervals([f"pairwise_ms_ssim{suffix}"], statistic, slices.subjects)


def _mean(name, scores, slices):
    return _with_intervals([name], lambda kept: [scores[kept].mean()], slices.subjects)


def _distances(compared, test_subjects, measured_test, matched, suffix):
    """Distances to the test slices at the same positions, the rows `matched` of the test slices."""
    measured = _measure(compared.images)

    def statistic(kept, kept_test):
        rows = matched[kept_test[matched]]
        first, second = (values[kept] for values in measured), (x[rows] for x in measured_test)
        features_pair, *others = zip(first, second, strict=True)
        return [
            frechet_distance(*features_pair),
            *density_and_coverage(features_pair[0], measured_test[0][kept_test]),
            *(_mean_difference(*pair) for pair in others),
        ]

    names = [f"{name}{suffix}" for name in DISTANCES]
    return _with_intervals(names, statistic, compared.subjects, test_subjects)


def _measure(images):
    """Features, foreground areas and intensity quantiles, a row for each image."""
    return features(images), _foreground_areas(images), _intensity_quantiles(images)


def _with_intervals(names, statistic, *owners):
    intervals = np.transpose(jackknife_interval(statistic, *owners))
    scores: dict[str, float] = {}
    for name, interval in zip(names, intervals, strict=True):
        # A symmetric interval may exceed the range of the score.
        highest = None if name.startswith(UNBOUNDED) else 1.0
        scores |= named_interval(name, np.clip(interval, 0.0, highest).tolist())
    return scores
