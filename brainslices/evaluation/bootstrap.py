"""Intervals of statistics by resampling, or by leaving out."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, t

__all__ = ["bootstrap_interval", "jackknife_interval", "named_interval"]

RESAMPLES = 2000
# The most blocks that a set is left out in.
BLOCKS = 25


def bootstrap_interval(
    statistic: Callable, observations: Sequence[np.ndarray], seed: int
) -> tuple[float, float, float]:
    """Compute a statistic with its 95 % percentile bootstrap interval.

    Args:
        statistic: takes arrays of observations, and the `axis` along which they are.
        observations: arrays of shape (n,); an observation is an entry of each.
        seed: seed of the resampling.

    Returns:
        The statistic, and the 2.5 and the 97.5 % percentile of the resamples in which it is not
        NaN. One observation: width 0; none: three NaN.

    Reference:
        Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.
    """
    if not len(observations[0]):
        return math.nan, math.nan, math.nan
    estimate = float(statistic(*observations, axis=-1))
    if len(observations[0]) == 1:  # SciPy resamples from two observations on
        return estimate, estimate, estimate
    options = {"n_resamples": RESAMPLES, "method": "percentile", "rng": seed, "paired": True}
    with warnings.catch_warnings():  # of NaN in some resamples
        warnings.simplefilter("ignore", DegenerateDataWarning)
        resampled = bootstrap(observations, statistic, **options).bootstrap_distribution
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return estimate, float(low), float(high)


def jackknife_interval(
    statistic: Callable[..., np.ndarray], *owners: Sequence
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute statistics of independent sets with their 95 % intervals by leaving out owners.

    For statistics that repeated observations would distort, such as a distance of distributions,
    which resampling cannot be used for. The owners of a set are left out in at most 25 blocks.

    Args:
        statistic: takes for each set a bool array, which of its observations to use, with at least
            2 of them; returns an array of statistics.
        owners: for each set the owner of each observation, such as its subject. What one owner has
            is not independent.

    Returns:
        The statistics and the ends of their intervals; NaN where a set has too few owners.

    Reference:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11. The variances of
        the sets are added: Arvesen 1969, "Jackknifing U-statistics".
    """
    everything = [np.ones(len(names), bool) for names in owners]
    estimate = np.asarray(statistic(*everything), "float64")
    variance, blocks = np.zeros_like(estimate), []
    for number, names in enumerate(owners):
        indices = np.unique(names, return_inverse=True)[1]
        count = min(indices.max() + 1, BLOCKS)
        kept = [indices % BLOCKS != block for block in range(count)]
        if min(map(np.sum, kept)) < 2:
            return estimate, np.full_like(estimate, math.nan), np.full_like(estimate, math.nan)
        values = [statistic(*everything[:number], mask, *everything[number + 1 :]) for mask in kept]
        variance += (count - 1) * np.var(values, axis=0)
        blocks.append(count)
    margin = t.ppf(0.975, min(blocks) - 1) * np.sqrt(variance)
    return estimate, estimate - margin, estimate + margin


def named_interval(name: str, interval: Sequence[float]) -> dict[str, float]:
    """Return a statistic under its name, and its interval under `name_low` and `name_high`.

    Args:
        name: key of the statistic.
        interval: the statistic and the ends of its interval.
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
