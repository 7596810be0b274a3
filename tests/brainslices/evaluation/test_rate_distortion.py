"""Curves of rate against score, and the Bjontegaard difference, on curves known exactly."""

import math

import numpy as np
import pytest

from brainslices.errors import InputError
from brainslices.evaluation.rate_distortion import Curve, bd_rate

SCORES = np.linspace(0.8, 0.95, 6)


def exponential(scores, factor=1.0):
    """Rates of a codec whose logarithm of the rate is linear in the score."""
    return factor * np.exp(10 * (np.asarray(scores) - 1))


def test_curve_passes_its_points_and_is_nan_outside():
    rates = [0.03, 0.05, 0.11, 0.2, 0.21, 0.4]
    curve = Curve(rates, SCORES)
    np.testing.assert_allclose([curve.rate_at(score) for score in SCORES], rates, rtol=1e-6)
    assert math.isnan(curve.rate_at(0.79)) and math.isnan(curve.rate_at(0.96))
    between = [curve.rate_at(score) for score in np.linspace(0.8, 0.95, 50)]
    assert (np.diff(between) > 0).all()


def test_order_of_the_points_does_not_matter():
    curve = Curve(exponential(SCORES)[::-1], SCORES[::-1])
    assert curve.rate_at(0.85) == pytest.approx(exponential(0.85))


@pytest.mark.parametrize("factor", [0.25, 1.0, 1.7])
def test_bd_rate_is_the_relative_difference_at_equal_scores(factor):
    """Over the common scores alone, wherever each curve was measured."""
    other = np.array([0.78, 0.86, 0.9, 0.93])
    difference = bd_rate(
        Curve(exponential(other, factor), other), Curve(exponential(SCORES), SCORES)
    )
    assert difference == pytest.approx(factor - 1, abs=1e-6)


def test_bd_rate_averages_the_logarithm():
    """Half the rate at one end and twice at the other are no difference, by symmetry."""
    scores = np.linspace(0.8, 0.9, 21)
    tilted = exponential(scores) * 2 ** np.linspace(-1, 1, 21)
    assert bd_rate(Curve(tilted, scores), Curve(exponential(scores), scores)) == pytest.approx(
        0, abs=1e-3
    )


def test_no_common_scores_are_nan():
    low, high = Curve([0.1, 0.2], [0.5, 0.6]), Curve([0.1, 0.2], [0.7, 0.8])
    assert math.isnan(bd_rate(low, high))


@pytest.mark.parametrize(
    ("rates", "scores"),
    [([], []), ([0.1], [0.9]), ([0.1, 0.2], [0.9, 0.8]), ([0, 0.1], [0.8, 0.9])],
)
def test_points_that_are_no_curve_are_refused(rates, scores):
    with pytest.raises(InputError, match="at least two points"):
        Curve(rates, scores)
