"""Slopes of image statistics on a condition, in samples and in real slices.

Samples of a prior conditioned on age should change with age as real slices do.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.data.subject_table import is_numeric
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import bootstrap_interval, named_interval

__all__ = ["condition_slopes", "known_values", "slice_statistics"]

# A pixel of the head below this share of the head's median is dark: mostly cerebrospinal fluid.
DARK = 0.45
QUANTILES = (0.25, 0.5, 0.75)
MIN_SUBJECTS = 3


def slice_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute image statistics of each slice.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        Name -> float64 array of shape (n,): `dark_share`, the share of the head (the foreground
        with its holes filled) that is below 0.45 of its median; `foreground_area`, a share of the
        image; and the quantiles of the foreground's intensities. NaN for a slice without
        foreground.
    """
    names = ["dark_share", "foreground_area", *(f"intensity_{q:g}" for q in QUANTILES)]
    return dict(zip(names, np.array([_statistics(image) for image in images]).T, strict=True))


def _statistics(image: np.ndarray) -> list[float]:
    foreground = image > FOREGROUND_THRESHOLD
    if not foreground.any():
        return [np.nan] * (2 + len(QUANTILES))
    head = image[ndimage.binary_fill_holes(foreground)]
    dark = np.mean(head < DARK * np.median(head))
    return [dark, foreground.mean(), *np.quantile(image[foreground], QUANTILES)]


def known_values(archive: SliceArchive, name: str) -> dict[str, float]:
    """Return a numeric column of the table of subjects, for the subjects that have a value.

    Raises:
        InputError: if fewer than three subjects have a value, or they are not numeric.
    """
    cells = {subject: row.get(name, "") for subject, row in archive.subjects.items()}
    known = {subject: cell for subject, cell in cells.items() if cell}
    if len(known) < MIN_SUBJECTS or not is_numeric(list(known.values())):
        raise InputError(
            f"`condition` {name} must be a number of at least {MIN_SUBJECTS} subjects of "
            f"{archive.path} to evaluate its effect. Received: {len(known)} values, such as "
            f"{next(iter(known.values()), 'none')}."
        )
    return {subject: float(cell) for subject, cell in known.items()}


def condition_slopes(
    images: np.ndarray,
    positions: np.ndarray,
    values: Sequence[float],
    archive: SliceArchive,
    name: str,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compare the slopes of image statistics on a numeric condition, in samples and in subjects.

    Of each subject with a known value, of any split, the slices nearest to the positions of the
    samples are taken.

    Args:
        images: float array of shape (values * m, rows, cols) in [0, 1]: m samples of the first
            value, then m of the second, and so on, with the same noise and positions.
        positions: float array of shape (m,).
        values: of the condition, at least two different ones.
        archive: the slice archive that the models were trained on.
        name: column of its table of subjects.
        seed: seed of the bootstrap.

    Returns:
        Statistic -> its `slope` in samples with a 95 % interval by sample (`_low`, `_high`), and
        `slope_real` in real slices with its interval by subject, per unit of the condition.

    Raises:
        InputError: as `known_values`.
    """
    real_values, real = _real_statistics(archive, known_values(archive, name), positions)
    # The samples of one noise are one unit of the bootstrap: their slope over the values.
    centred = np.asarray(values, "float64") - np.mean(values)
    weights = centred / (centred**2).sum()
    slopes = {}
    for key, statistic in slice_statistics(images).items():
        noise_slopes = weights @ statistic.reshape(len(values), -1)
        noise_slopes = noise_slopes[np.isfinite(noise_slopes)]
        is_known = np.isfinite(real[key])
        observations = real_values[is_known], real[key][is_known]
        slopes[key] = {
            **named_interval("slope", bootstrap_interval(np.mean, (noise_slopes,), seed)),
            **named_interval("slope_real", bootstrap_interval(_slope, observations, seed)),
        }
    return slopes


def _real_statistics(archive, known, positions):
    """Return the values of subjects, and the mean of each statistic over their slices."""
    rows_by_subject = {subject: [] for subject in known}
    for row, record in enumerate(archive.index):
        if record.subject in rows_by_subject:
            rows_by_subject[record.subject].append(row)
    rows_by_subject = {subject: np.array(rows) for subject, rows in rows_by_subject.items() if rows}
    means = []
    for rows in rows_by_subject.values():
        own = np.array([archive.index[row].position for row in rows])
        nearest = rows[np.abs(own[:, None] - np.unique(positions)).argmin(axis=0)]
        statistics = slice_statistics(archive.load(np.unique(nearest))[..., 0])
        means.append({name: np.nanmean(column) for name, column in statistics.items()})
    values = np.array([known[subject] for subject in rows_by_subject])
    return values, {name: np.array([mean[name] for mean in means]) for name in means[0]}


def _slope(values, statistic, axis=-1):
    """Slope of the least-squares line; NaN where all values are equal, as in some resamples."""
    centred = values - values.mean(axis=axis, keepdims=True)
    squares = (centred**2).sum(axis=axis)
    slopes = (centred * statistic).sum(axis=axis) / np.where(squares > 0, squares, 1)
    return np.where(squares > 0, slopes, np.nan)
