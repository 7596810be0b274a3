"""Comparison of codecs by their curves of score against rate."""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from brainslices.errors import InputError

__all__ = ["Curve", "bd_rate"]


class Curve:
    """The rate of a codec as a function of its score, interpolated between measured points.

    Interpolates the logarithm of the rate by monotone cubic polynomials.

    Args:
        rates: rates of at least two points, positive, in bits per pixel.
        scores: their scores, which must rise with the rate.

    Raises:
        InputError: if there are fewer than two points, or the scores do not rise with the rate.

    Example:
        >>> curve = Curve([0.1, 0.2, 0.4], [0.8, 0.9, 0.95])
        >>> round(curve.rate_at(0.9), 3)
        0.2
    """

    def __init__(self, rates: Sequence[float], scores: Sequence[float]):
        points = sorted(zip(rates, scores, strict=True))
        rising = all(low[1] < high[1] for low, high in zip(points, points[1:], strict=False))
        if len(points) < 2 or points[0][0] <= 0 or not rising:
            text = ", ".join(f"{score:.4f} at {rate:.4f}" for rate, score in points)
            raise InputError(
                "`rates` and `scores` must be at least two points of positive rate whose scores "
                f"rise with the rate. Received: {text or 'none'}."
            )
        log_rates, self.scores = np.log([point[0] for point in points]), [p[1] for p in points]
        self._log_rate = PchipInterpolator(self.scores, log_rates)

    def rate_at(self, score: float) -> float:
        """Return the rate at a score; NaN outside of the measured scores."""
        if not self.scores[0] <= score <= self.scores[-1]:
            return float("nan")
        return float(np.exp(self._log_rate(score)))

    def mean_log_rate(self, low: float, high: float) -> float:
        """Return the mean logarithm of the rate between two measured scores."""
        return float(self._log_rate.integrate(low, high)) / (high - low)


def bd_rate(curve: Curve, baseline: Curve) -> float:
    """Compute the Bjontegaard rate difference of a codec to a baseline.

    Args:
        curve: the codec.
        baseline: the codec to compare with.

    Returns:
        Mean relative difference of the rate at equal scores, over the scores that both curves
        have: -0.5 for half the bits. NaN if they have none in common.

    Reference:
        Bjontegaard 2001, VCEG-M33, with monotone cubic polynomials as in JVET's common test
        conditions.
    """
    low = max(curve.scores[0], baseline.scores[0])
    high = min(curve.scores[-1], baseline.scores[-1])
    if low >= high:
        return float("nan")
    difference = curve.mean_log_rate(low, high) - baseline.mean_log_rate(low, high)
    return float(np.expm1(difference))
