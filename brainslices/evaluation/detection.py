"""How well anomaly maps find lesions, per slice and per pixel, with intervals by subject.

A resample draws as many subjects as there are, with replacement, and takes all slices of each.
Every figure is computed from sums over subjects, so that a resample needs no pass over the pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from brainslices.evaluation.bootstrap import bootstrap_interval

__all__ = ["PixelCounts", "subject_auroc"]

# Thresholds of the pixel scores: quantiles of the scores within lesions, and of all.
THRESHOLDS = 2048

Interval = tuple[float, float, float]


def _subject_interval(statistic: Callable[[np.ndarray], np.ndarray], subjects: int) -> Interval:
    """Return the statistic of all subjects with its 95 % interval.

    Args:
        statistic: how often each subject is taken, of shape (resamples, subjects) -> values of
            shape (resamples,).
        subjects: number of subjects.
    """
    numbers = np.arange(subjects)

    def of_drawn(drawn, axis):
        del axis  # the last
        rows = drawn.reshape(-1, subjects)
        rows = rows + subjects * np.arange(len(rows))[:, None]
        counts = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape)
        with np.errstate(invalid="ignore"):  # NaN where a resample has no lesion
            return statistic(counts.astype("float64")).reshape(drawn.shape[:-1])

    return bootstrap_interval(of_drawn, (numbers,), seed=0)


def subject_auroc(
    healthy: np.ndarray,
    lesioned: np.ndarray,
    healthy_subjects: Sequence[str] | np.ndarray,
    lesioned_subjects: Sequence[str] | np.ndarray,
) -> Interval:
    """Compute the area under the ROC curve of slice scores, with its 95 % interval by subject.

    Args:
        healthy: float array of shape (n,), scores of slices without lesions.
        lesioned: float array of shape (m,), scores of slices with one.
        healthy_subjects: subject of each slice without lesions.
        lesioned_subjects: subject of each slice with one; all are among `healthy_subjects`.

    Returns:
        The area, and its 2.5 and 97.5 % percentiles; 0.5 is chance.
    """
    names = np.unique(np.concatenate([healthy_subjects, lesioned_subjects]))
    healthy_owners, lesioned_owners = (
        (names[:, None] == np.asarray(owners)).astype(float)
        for owners in (healthy_subjects, lesioned_subjects)
    )
    above = (lesioned > healthy[:, None]) + 0.5 * (lesioned == healthy[:, None])
    wins = healthy_owners @ above @ lesioned_owners.T
    pairs = np.outer(healthy_owners.sum(axis=1), lesioned_owners.sum(axis=1))

    def area(counts):
        return ((counts @ wins) * counts).sum(axis=1) / ((counts @ pairs) * counts).sum(axis=1)

    return _subject_interval(area, len(names))


class PixelCounts:
    """Counts of pixels by score, for each subject, with and without lesion.

    Args:
        scores: float array of shape (pixels,).
        is_lesion: bool array of the same shape.
        subjects: str array of the same shape, or int.

    Example:
        >>> counts = PixelCounts(np.array([0.1, 0.9]), np.array([False, True]), np.array([0, 0]))
        >>> counts.average_precision()[0], counts.best_dice()[0], counts.chance
        (1.0, 1.0, 0.5)
    """

    def __init__(self, scores: np.ndarray, is_lesion: np.ndarray, subjects: np.ndarray):
        shares = np.linspace(0, 1, THRESHOLDS)
        edges = np.unique(
            np.concatenate([np.quantile(scores[is_lesion], shares), np.quantile(scores, shares)])
        )
        names, owners = np.unique(subjects, return_inverse=True)
        bins = np.searchsorted(edges, scores, side="right")
        shape = (2, len(names), len(edges) + 1)
        index = np.ravel_multi_index((is_lesion.astype(int), owners, bins), shape)
        counts = np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)
        # At least as high as each threshold, the highest first.
        cumulative = np.cumsum(counts[..., ::-1], axis=-1)
        self._healthy, self._lesion = cumulative.astype("float64")

    @property
    def chance(self) -> float:
        """Share of lesion pixels: the average precision of random scores."""
        lesion, healthy = self._lesion[:, -1].sum(), self._healthy[:, -1].sum()
        return float(lesion / (lesion + healthy))

    def average_precision(self) -> Interval:
        """Compute the average precision with its 95 % interval by subject."""

        def precision(counts):
            hits, false = counts @ self._lesion, counts @ self._healthy
            steps = np.diff(hits, prepend=0, axis=1)
            return (steps * hits / np.maximum(hits + false, 1)).sum(axis=1) / hits[:, -1]

        return _subject_interval(precision, len(self._lesion))

    def best_dice(self) -> Interval:
        """Compute the Dice coefficient at its best threshold with its 95 % interval by subject."""

        def dice(counts):
            hits, false = counts @ self._lesion, counts @ self._healthy
            return np.max(2 * hits / (hits + false + hits[:, -1:]), axis=1)

        return _subject_interval(dice, len(self._lesion))
