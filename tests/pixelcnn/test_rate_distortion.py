"""Encoding by distance and rate against brute force over all grids of a tiny prior."""

import itertools

import numpy as np
import pytest
from tiny_prior import tiny_pixelcnn

from brainslices.errors import InputError
from pixelcnn.rate_distortion import RateDistortionEncoder

pytestmark = pytest.mark.usefixtures("fresh_keras")

GRID, CODES = (2, 2), 3
POSITION = np.float32([0.2, 0.7])


class FakeQuantizer:
    codebook = np.float32([[0.0], [1.0], [3.0]])

    def scores(self, latents):
        return latents @ self.codebook.T - np.square(self.codebook[:, 0]) / 2


class FakeDecoder:
    """Latents are the images themselves."""

    quantizer = FakeQuantizer()

    def encode(self, images):
        return images


@pytest.fixture(scope="module")
def model():
    return tiny_pixelcnn(GRID, CODES, attention_layers=0, layers=2)


@pytest.fixture
def latents():
    return np.random.default_rng(0).uniform(-0.5, 3.5, (2, *GRID, 1)).astype("float32")


def cost(model, latents, codes, weight):
    """Distance in units of the mean squared spacing, (1 + 1 + 4) / 3, plus weighted nats."""
    vectors = FakeQuantizer.codebook[codes][..., 0]
    distance = np.square(latents[..., 0] - vectors).sum(axis=(1, 2)) / 2
    return distance - weight * np.asarray(model.log_prob(codes, POSITION)).sum(axis=(1, 2))


def test_weight_zero_gives_the_nearest_codes_and_their_nats(model, latents):
    codes, nats = RateDistortionEncoder(model, FakeDecoder(), 0.0)(latents, POSITION)
    expected = np.abs(latents - FakeQuantizer.codebook[:, 0]).argmin(axis=-1)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(nats, -np.asarray(model.log_prob(codes, POSITION)), rtol=1e-5)
    assert codes.dtype == "int32"


@pytest.mark.parametrize("weight", [0.05, 0.5, 5.0])
def test_cost_lies_between_the_optimum_and_that_of_the_nearest_codes(model, latents, weight):
    nearest, nearest_nats = RateDistortionEncoder(model, FakeDecoder(), 0.0)(latents, POSITION)
    codes, nats = RateDistortionEncoder(model, FakeDecoder(), weight)(latents, POSITION)
    reached = cost(model, latents, codes, weight)
    grids = np.array(list(itertools.product(range(CODES), repeat=4))).reshape(-1, *GRID)
    all_costs = [cost(model, latents, np.stack([grid, grid]), weight) for grid in grids]
    assert (reached >= np.min(all_costs, axis=0) - 1e-5).all()
    assert (reached <= cost(model, latents, nearest, weight) + 1e-5).all()
    np.testing.assert_allclose(nats, -np.asarray(model.log_prob(codes, POSITION)), rtol=1e-4)
    if weight == 5.0:
        assert nats.sum() < nearest_nats.sum()


def test_great_weight_gives_likely_codes_whatever_the_latents(model, latents):
    encoder = RateDistortionEncoder(model, FakeDecoder(), 1e6)
    codes, _ = encoder(latents, POSITION)
    others, _ = encoder(latents[::-1] * 0 + 1.2, POSITION)
    np.testing.assert_array_equal(codes, others)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weight_out_of_range_is_refused(model, weight):
    with pytest.raises(InputError, match="`rate_weight` must be finite and at least 0"):
        RateDistortionEncoder(model, FakeDecoder(), weight)
