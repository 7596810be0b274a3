"""Intervals of statistics by resampling."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

__all__ = ["bootstrap_interval", "named_interval"]

RESAMPLES = 2000


def bootstrap_interval(
    statistic: Callable, observations: Sequence[np.ndarray], seed: int
) -> tuple[float, float, float]:
    """Compute a statistic with its 95 % percentile bootstrap interval.

    Args:
        statistic: takes arrays of observations, and the `axis` along which they are.
        observations: arrays of shape (n,); an observation is an entry of each.
        seed: seed of the resampling.

    Returns:
        The statistic, the 2.5 and the 97.5 % percentile. One observation: width 0.

    Reference:
        Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.
    """
    estimate = float(statistic(*observations, axis=-1))
    if len(observations[0]) == 1:  # SciPy resamples from two observations on
        return estimate, estimate, estimate
    options = {"n_resamples": RESAMPLES, "method": "percentile", "rng": seed, "paired": True}
    low, high = bootstrap(observations, statistic, **options).confidence_interval
    return estimate, float(low), float(high)


def named_interval(name: str, interval: Sequence[float]) -> dict[str, float]:
    """Return a statistic under its name, and its interval under `name_low` and `name_high`.

    Args:
        name: key of the statistic.
        interval: the statistic and the ends of its interval.
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
