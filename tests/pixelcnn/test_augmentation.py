"""A prior conditioned on how its training grids are augmented."""

import numpy as np
import pytest
from tiny_prior import tiny_inputs, tiny_pixelcnn

from brainslices.data.code_grids import SplitCodes
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.training import CodeBatches
from vqvae.encode import augment

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_indicators_are_those_of_the_variants_of_the_encoder():
    """The grids are images: each variant is flipped, and the later ones shifted, as indicated."""
    rows = np.arange(40)
    images = np.random.default_rng(0).integers(1, 255, (40, 6, 5, 1)).astype("uint16")
    variants = np.stack([augment(images, number, rows, (2, 2)) for number in range(1, 6)])
    grids = SplitCodes(images[..., 0], rows.astype(str), rows.astype(str), np.float32(rows / 40))
    flipped, shifted = set(), 0
    for epoch in range(8):
        batches = CodeBatches(grids, 40, seed=1, variants=variants[..., 0], epoch=epoch)
        ((inputs,),) = batches
        for codes, position, flags in zip(*inputs.values(), strict=True):
            original = images[round(position * 40), ..., 0]
            expected = original[::-1] if flags[0] else original
            assert flags[1] or (codes == expected).all()
            shifted += int((codes != expected).any()) - int(flags[1])
            flipped.add(bool(flags[0]))
    assert flipped == {True, False}
    assert -8 * 40 / 25 <= shifted <= 0  # a shift may be 0


def test_indicators_change_the_logits_and_none_means_not_augmented():
    model, inputs = tiny_pixelcnn(augmentation_condition=True), tiny_inputs(1)
    flags = [[0, 0], [1, 0], [0, 1], [1, 1]]
    logits = [np.asarray(model({**inputs, "augmentation": np.float32([one])})) for one in flags]
    for first in range(4):
        for second in range(first):
            assert np.abs(logits[first] - logits[second]).max() > 1e-3
    np.testing.assert_array_equal(logits[0], model(inputs))


def test_prior_without_the_indicators_ignores_them():
    model, inputs = tiny_pixelcnn(), tiny_inputs(1)
    flags = np.float32([[1, 1]])
    np.testing.assert_array_equal(model({**inputs, "augmentation": flags}), model(inputs))


def test_samples_are_not_augmented():
    model = tiny_pixelcnn(augmentation_condition=True)
    position = np.float32([0.2, 0.7])
    drawn = Sampler(model)(position, uniform_noise(0, range(2), model.grid_shape))
    expected = model.log_prob(drawn["codes"], position)
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=1e-4)
