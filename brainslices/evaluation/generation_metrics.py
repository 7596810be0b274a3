"""How sampled slices are measured: diversity, memorisation and likeness to real slices.

Each figure stands beside the same figure of real slices at the same positions of the head; a value
says little without it. NumPy, SciPy and scikit-image alone, at the source size.
"""

import math
from collections.abc import Sequence

import numpy as np

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.frechet import features, frechet_distance
from brainslices.evaluation.ms_ssim import SAME_HEIGHT, _level_pairs, pairwise_ms_ssim
from brainslices.evaluation.nearest import _check_images, nearest_train

__all__ = [
    "QUANTILES",
    "check_comparable",
    "evaluate_samples",
    "foreground_area",
    "foreground_area_difference",
    "intensity_quantile_difference",
    "intensity_quantiles",
    "matched_rows",
]

WINDOW_RADIUS = 5
QUANTILES = np.linspace(0.05, 0.95, 19)


def foreground_area(images: np.ndarray) -> np.ndarray:
    """Share of each picture's pixels above `FOREGROUND_THRESHOLD`.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n,) in [0, 1].
    """
    return np.array([np.mean(image > FOREGROUND_THRESHOLD) for image in images], "float64")


def intensity_quantiles(images: np.ndarray) -> np.ndarray:
    """Quantiles 0.05, 0.10 .. 0.95 of each picture's foreground intensities.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n, 19), not a number where a picture has no foreground.
    """
    quantiles = np.full((len(images), len(QUANTILES)), np.nan)
    for row, image in zip(quantiles, images, strict=True):
        foreground = image[image > FOREGROUND_THRESHOLD]
        if foreground.size:
            row[:] = np.quantile(foreground, QUANTILES)
    return quantiles


def foreground_area_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Absolute difference of two sets' mean foreground areas, a share of the picture."""
    return float(abs(foreground_area(first).mean() - foreground_area(second).mean()))


def intensity_quantile_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two sets' mean intensity quantiles, in [0, 1].

    Pictures without foreground are left out; not a number where a set has no other.
    """
    means = []
    for images in (first, second):
        quantiles = intensity_quantiles(images)
        quantiles = quantiles[~np.isnan(quantiles[:, 0])]
        if not len(quantiles):
            return math.nan
        means.append(quantiles.mean(axis=0))
    return float(np.mean(np.abs(means[0] - means[1])))


def matched_rows(
    archive: SliceArchive, split: str, positions: Sequence[float], seed: int = 0
) -> np.ndarray:
    """For each position a slice of a split at that level, of different subjects in turn.

    A slice comes a second time only when all others as near have come.

    Args:
        archive: the slice archive.
        split: which of its splits to take from.
        positions: float array of shape (n,). Taken are slices at the nearest position there is;
            those less than 1 / 256 further off count as equally near.
        seed: chooses among equals.

    Returns:
        Row numbers in the archive, int64 of shape (n,).

    Raises:
        InputError: the split is empty.
    """
    rows = archive.indices(split)
    heights = np.array([archive.index[row].position for row in rows])
    _, owners = np.unique([archive.index[row].subject for row in rows], return_inverse=True)
    lots = np.random.default_rng(seed).random(len(rows))
    taken, turns = np.zeros(len(rows), int), np.zeros(owners.max() + 1, int)
    chosen = []
    for position in positions:
        gaps = np.abs(heights - position)
        near = np.flatnonzero(gaps < gaps.min() + SAME_HEIGHT)
        best = near[np.lexsort((lots[near], turns[owners[near]], taken[near]))[0]]
        taken[best] += 1
        turns[owners[best]] += 1
        chosen.append(rows[best])
    return np.array(chosen, "int64")


def check_comparable(positions: Sequence[float], archive: SliceArchive, seed: int = 0) -> None:
    """Refuses samples that `evaluate_samples` could not measure, before they are drawn.

    Args:
        positions: the position each is to be sampled at, float array of shape (n,).
        archive: the slice archive whose training slices the models saw.
        seed: as there.

    Raises:
        InputError: as there.
    """
    if len(positions) < 2:
        raise InputError(f"Samples are measured from 2 on. Received: {len(positions)}.")
    matched_rows(archive, "test", positions, seed)
    rows = matched_rows(archive, "train", positions, seed)
    _level_pairs(positions, None, 1, seed)
    _level_pairs(positions, [archive.index[row].subject for row in rows], 1, seed)


def evaluate_samples(
    images: np.ndarray, positions: Sequence[float], archive: SliceArchive, *, seed: int = 0
) -> dict:
    """Measures samples, each figure beside the same figure of real slices at their positions.

    Args:
        images: float32 array of shape (n, rows, cols) in [0, 1], of the archive's size.
        positions: the position each was sampled at, float array of shape (n,).
        archive: the slice archive whose training slices the models saw.
        seed: chooses the real slices and the pairs.

    Returns:
        `pairwise_ms_ssim` (baseline: training slices of different subjects),
        `nearest_train_ssim` (test slices), `frechet_distance`, `foreground_area_difference` and
        `intensity_quantile_difference` (each to the test slices; baseline: as many training
        slices as samples), each with its baseline as `_real`; `samples`, their number; and
        `nearest`, the row and SSIM arrays of `nearest_train`, which is no number to report.

    Raises:
        InputError: fewer than 2 samples, none two at one level, a shape that is not the
            archive's, or an archive without training or test slices.
    """
    images, positions = np.asarray(images, "float32"), np.asarray(positions, "float64")
    _check_images(images, archive)
    if len(images) < 2 or positions.shape != (len(images),):
        raise InputError(
            "Samples are measured from 2 on, with a position each. Received: "
            f"{len(images)} pictures and positions of shape {positions.shape}."
        )
    train_rows = matched_rows(archive, "train", positions, seed)
    test_rows = matched_rows(archive, "test", positions, seed)
    train, test = (archive.load(rows)[..., 0] for rows in (train_rows, test_rows))
    subjects = [archive.index[row].subject for row in train_rows]
    diversity = {
        "pairwise_ms_ssim": pairwise_ms_ssim(
            images, positions, seed=seed, description="pairs of samples"
        ),
        "pairwise_ms_ssim_real": pairwise_ms_ssim(
            train, positions, subjects, seed=seed, description="pairs of real slices"
        ),
    }
    rows, scores = nearest_train(images, archive, description="nearest of samples")
    unique_test = archive.load(np.unique(test_rows))[..., 0]
    real_scores = nearest_train(unique_test, archive, description="nearest of test slices")[1]
    return {
        **diversity,
        "nearest_train_ssim": float(scores.mean()),
        "nearest_train_ssim_real": float(real_scores.mean()),
        **_distances(images, train, test),
        "samples": len(images),
        "nearest": (rows, scores),
    }


def _distances(images, train, test):
    sets = [features(each) for each in (images, train, test)]
    distances = {}
    for end, pictures, described in (("", images, sets[0]), ("_real", train, sets[1])):
        distances |= {
            f"frechet_distance{end}": frechet_distance(described, sets[2]),
            f"foreground_area_difference{end}": foreground_area_difference(pictures, test),
            f"intensity_quantile_difference{end}": intensity_quantile_difference(pictures, test),
        }
    return distances
