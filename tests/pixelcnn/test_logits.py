"""Filters of logits and sampling by inversion, against NumPy."""

import numpy as np
import pytest

from pixelcnn.logits import filter_logits, sample_from_logits


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def logits_of(count=5, codes=9, seed=0):
    return np.random.default_rng(seed).normal(scale=2, size=(count, codes)).astype("float32")


def test_codes_follow_the_probabilities():
    logits = np.repeat(logits_of(1), 20_000, axis=0)
    uniform = np.random.default_rng(1).random(len(logits)).astype("float32")
    counts = np.bincount(np.asarray(sample_from_logits(logits, uniform)), minlength=9) / len(logits)
    np.testing.assert_allclose(counts, softmax(logits[0]), atol=0.012)


def test_no_noise_samples_an_impossible_code():
    logits = np.full((4, 6), -np.inf, "float32")
    logits[:, 2] = logits[:, 4] = 0
    uniform = np.float32([0, 0.4999, 0.5001, np.nextafter(np.float32(1), np.float32(0))])
    assert np.asarray(sample_from_logits(logits, uniform)).tolist() == [2, 2, 4, 4]


def test_temperature_towards_zero_is_argmax():
    logits = logits_of(50)
    uniform = np.random.default_rng(0).random(50).astype("float32")
    for temperature in (1e-3, 1e-30, 1e-50):
        sampled = sample_from_logits(filter_logits(logits, temperature), uniform)
        np.testing.assert_array_equal(sampled, logits.argmax(axis=1))


def test_the_smallest_nucleus_is_the_most_likely_code():
    logits = logits_of(50)
    uniform = np.random.default_rng(0).random(50).astype("float32")
    sampled = sample_from_logits(filter_logits(logits, top_p=1e-50), uniform)
    np.testing.assert_array_equal(sampled, logits.argmax(axis=1))


def test_temperature_flattens_and_sharpens():
    logits = logits_of(3)
    for temperature in (0.5, 2.0):
        np.testing.assert_allclose(
            softmax(np.asarray(filter_logits(logits, temperature))),
            softmax(logits / temperature),
            rtol=1e-4,
        )


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_top_k_keeps_the_most_likely(top_k):
    logits = logits_of()
    remaining = np.isfinite(np.asarray(filter_logits(logits, top_k=top_k)))
    for row, allowed in zip(logits, remaining, strict=True):
        assert set(np.nonzero(allowed)[0]) == set(np.argsort(-row)[:top_k])


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it(top_p):
    logits = logits_of()
    remaining = np.isfinite(np.asarray(filter_logits(logits, top_p=top_p)))
    for row, allowed in zip(logits, remaining, strict=True):
        order = np.argsort(-row)
        reached = np.cumsum(softmax(row.astype("float64"))[order])
        count = len(row) if top_p == 1 else np.argmax(reached >= top_p) + 1
        assert set(np.nonzero(allowed)[0]) == set(order[:count])
