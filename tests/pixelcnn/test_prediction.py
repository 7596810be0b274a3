"""Predicted images, and differences to them in standard deviations of validation."""

from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter
from tiny_prior import CODES, GRID, tiny_pixelcnn

from pixelcnn.prediction import FLOOR, SIGMA, Prediction
from pixelcnn.surprise import Surprise

pytestmark = pytest.mark.usefixtures("fresh_keras")

GREYS = np.linspace(0, 1, CODES, dtype="float32")
# A code is a pixel; the crop is the image without its first row.
DECODER = SimpleNamespace(
    crop=(1, 0, *GRID),
    image_shape=(1 + GRID[0], GRID[1]),
    decode_codes=lambda codes: np.pad(GREYS[codes], ((0, 0), (1, 0), (0, 0)))[..., None],
    decode_expected=lambda probabilities: ops.pad(
        ops.sum(probabilities * GREYS, axis=-1), ((0, 0), (1, 0), (0, 0))
    )[..., None],
)


@pytest.mark.slow
def test_maps_are_standardised_by_the_validation_slices():
    model = tiny_pixelcnn(layers=1, attention_layers=0)
    codes = np.random.default_rng(0).integers(0, CODES, (12, *GRID), "int32")
    positions = np.full(12, 0.5, "float32")
    subjects = np.array([f"case_{k // 2}" for k in range(12)])
    prediction = Prediction(Surprise(model, codes, positions, subjects, 5), DECODER)

    probabilities = ops.softmax(model({"codes": codes, "position": positions}))
    expected = np.asarray(probabilities) @ GREYS
    np.testing.assert_allclose(prediction.images(codes, positions), expected, atol=2e-3)
    differences = gaussian_filter(GREYS[codes] - expected, (0, SIGMA, SIGMA))
    images = DECODER.decode_codes(codes)[..., 0]
    maps = list(prediction.maps(images[:2], codes[:2], positions[:2], subjects[:2]))
    for difference, found in zip(differences[:2], maps, strict=True):
        mean, deviation = differences[2:].mean(axis=0), differences[2:].std(axis=0)
        np.testing.assert_allclose(
            found[1:], np.abs(difference - mean) / (deviation + FLOOR), atol=0.02
        )
        assert (found[0] == 0).all()
