"""Restorations resample the masked codes only; maps weight them."""

import numpy as np
import pytest
from tiny_prior import CODES, GRID, tiny_pixelcnn

from pixelcnn.restoration import restoration_map, restore
from pixelcnn.sampling import MASKED, Sampler

pytestmark = pytest.mark.usefixtures("fresh_keras")


class PixelDecoder:
    """A code is a pixel."""

    def decode_codes(self, codes):
        return np.asarray(codes)[..., None] / (CODES - 1)


@pytest.mark.slow
def test_restorations_keep_the_observed_codes_of_each_slice():
    sampler = Sampler(tiny_pixelcnn(layers=1, attention_layers=0))
    observed = np.random.default_rng(0).integers(0, CODES, (3, *GRID), "int32")
    observed[0, :2] = observed[2, 3, 1:] = MASKED
    arguments = sampler, PixelDecoder(), observed, np.float32([0.1, 0.5, 0.9]), 5
    restored = list(restore(*arguments, seed=1, batch_size=4))
    assert [images.shape for images in restored] == [(5, *GRID)] * 3
    for codes, images in zip(observed, restored, strict=True):
        is_observed = codes != MASKED
        expected = np.broadcast_to(codes[is_observed] / (CODES - 1), (5, is_observed.sum()))
        np.testing.assert_allclose(images[:, is_observed], expected, atol=1e-6)
    assert len(np.unique(restored[0].reshape(5, -1), axis=0)) > 1
    np.testing.assert_array_equal(restored, list(restore(*arguments, seed=1, batch_size=15)))


def test_nearer_restorations_count_more():
    original = np.zeros((4, 4), "float32")
    restored = np.stack([np.full((4, 4), 0.1), np.full((4, 4), 0.3)]).astype("float32")
    # Weights 3/4 and 1/4.
    np.testing.assert_allclose(restoration_map(original, restored), 0.15, rtol=1e-5)
    np.testing.assert_allclose(restoration_map(original, restored[:1]), 0.1, rtol=1e-5)
    assert (restoration_map(original, np.stack([original] * 2)) == 0).all()
