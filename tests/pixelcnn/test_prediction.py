"""Differences to predicted images, beside a computation in NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter
from tiny_prior import CODES, GRID, tiny_pixelcnn

from pixelcnn.logits import sample_from_logits
from pixelcnn.prediction import DRAWS, ERROR_SCALE, FLOOR, SIGMA, Prediction
from pixelcnn.sampling import uniform_noise

pytestmark = pytest.mark.usefixtures("fresh_keras")

GREYS = np.linspace(0, 1, CODES, dtype="float32")


def decode(greys):
    """A code is a pixel; the crop is the image without its first and last row."""
    return ops.pad(greys, ((0, 0), (1, 1), (0, 0)))[..., None]


DECODER = SimpleNamespace(
    crop=(1, 0, *GRID),
    image_shape=(2 + GRID[0], GRID[1]),
    encode_to_codes=lambda images: np.rint(images[:, 1:-1, :, 0] * (CODES - 1)).astype("int32"),
    decode_codes=lambda codes: decode(ops.take(GREYS, codes)),
    decode_expected=lambda probabilities: decode(ops.sum(probabilities * GREYS, axis=-1)),
)


def moments(model, codes, positions):
    """Mean grey of each place under the prior, and its variance in the draws."""
    logits = ops.log_softmax(model({"codes": codes, "position": positions}))
    mean = np.exp(logits) @ GREYS
    variance = 0
    for noise in uniform_noise(0, range(DRAWS), GRID):
        uniform = np.broadcast_to(noise, codes.shape).reshape(-1)
        drawn = sample_from_logits(ops.reshape(logits, (-1, CODES)), uniform)
        variance += (GREYS[np.asarray(drawn)].reshape(codes.shape) - mean) ** 2 / DRAWS
    return mean, variance


def test_maps_are_deviations_from_both_readings_and_the_reconstruction_error():
    model = tiny_pixelcnn(layers=1, attention_layers=0)
    codes = np.random.default_rng(0).integers(0, CODES, (5, *GRID), "int32")
    positions = np.linspace(0.2, 0.8, 5, dtype="float32")
    error = np.random.default_rng(1).uniform(0, 0.05, codes.shape)
    images = np.pad(GREYS[codes] + error, ((0, 0), (1, 1), (0, 0))).astype("float32")

    there, back = (moments(model, each, positions) for each in (codes, codes[:, ::-1]))
    mean, variance = ((one + other[:, ::-1]) / 2 for one, other in zip(there, back, strict=True))
    whitened = (images[:, 1:-1] - mean) / np.sqrt(variance + FLOOR**2)
    smooth = (0, SIGMA, SIGMA)
    expected = np.abs(gaussian_filter(whitened, smooth))
    expected += gaussian_filter(error, smooth) / ERROR_SCALE

    for size in (2, 5):
        found = np.stack(list(Prediction(model, DECODER, size).maps(images, codes, positions)))
        np.testing.assert_allclose(found[:, 1:-1], expected, rtol=5e-3, atol=5e-3)
        assert (found[:, [0, -1]] == 0).all()
