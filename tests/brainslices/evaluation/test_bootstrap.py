"""Intervals by resampling and by leaving out, against closed forms."""

import numpy as np
import pytest
from scipy.stats import t

from brainslices.evaluation.bootstrap import bootstrap_interval, jackknife_interval


def means(*sets):
    def statistic(*kept):
        chosen = [values[mask] for values, mask in zip(sets, kept, strict=True)]
        return np.array([chosen[0].mean() - sum(values.mean() for values in chosen[1:])])

    return statistic


def test_interval_of_a_difference_of_means_is_that_of_the_t_distribution():
    first, second = np.random.default_rng(0).standard_normal((2, 20))
    second = second[:12]
    (estimate,), (low,), (high,) = jackknife_interval(means(first, second), range(20), range(12))
    deviation = np.sqrt(first.var(ddof=1) / 20 + second.var(ddof=1) / 12)
    assert estimate == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx(
        (estimate - t.ppf(0.975, 11) * deviation, estimate + t.ppf(0.975, 11) * deviation)
    )


def test_what_one_owner_repeats_tells_no_more():
    values = np.random.default_rng(1).standard_normal(9)
    alone = jackknife_interval(means(values), range(9))
    repeated = jackknife_interval(means(values.repeat(4)), np.arange(9).repeat(4))
    np.testing.assert_allclose(alone, repeated)


def test_many_owners_are_left_out_in_blocks():
    calls = []

    def statistic(kept):
        calls.append(kept)
        return [values[kept].mean()]

    values = np.random.default_rng(2).standard_normal(1000)
    (estimate,), (low,), (high,) = jackknife_interval(statistic, range(1000))
    assert len(calls) == 26
    np.testing.assert_array_equal(np.sum(np.invert(calls), axis=0), 1)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.35)
    assert low < estimate < high


@pytest.mark.parametrize("owners", ["a", "aaaa", "ab"])
def test_interval_of_too_few_is_unknown(owners):
    (estimate,), low, high = jackknife_interval(means(np.arange(len(owners))), list(owners))
    assert estimate == np.mean(range(len(owners)))
    assert np.isnan([low, high]).all()


def test_interval_of_nothing_and_of_one_observation():
    assert np.isnan(bootstrap_interval(np.mean, (np.array([]),), 0)).all()
    assert bootstrap_interval(np.mean, (np.array([2.0]),), 0) == (2, 2, 2)
