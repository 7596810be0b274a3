import keras
import numpy as np
import pytest
from tiny_prior import GRID, tiny_pixelcnn

import pixelcnn.inpainting
from brainslices.errors import InputError
from pixelcnn.inpainting import inpaint_codes, most_likely_position
from pixelcnn.sampling import MASKED, Sampler, uniform_noise

pytestmark = pytest.mark.usefixtures("fresh_keras")


def trained(grid, codes, positions):
    """A tiny prior of two codes, trained on some grids."""
    model = tiny_pixelcnn(grid, 2, fill=False, layers=1, attention_layers=0)
    model.compile(keras.optimizers.Adam(0.03))
    inputs = {"codes": codes, "position": positions}
    model.fit(inputs, epochs=60, batch_size=len(codes), verbose=0)
    return model


@pytest.mark.slow
def test_inpainting_uses_the_observed_codes_that_follow_in_scan_order(monkeypatch):
    """In 2 x 2 grids the last code equals the first with probability 0.9."""
    monkeypatch.setattr(pixelcnn.inpainting, "CANDIDATES", 40)
    rng, count = np.random.default_rng(0), 512
    grids = rng.integers(0, 2, (count, 2, 2)).astype("int32")
    grids[:, 1, 1] = np.where(rng.random(count) < 0.9, grids[:, 0, 0], 1 - grids[:, 0, 0])
    position = np.full(count, 0.5, "float32")
    sampler = Sampler(trained((2, 2), grids, position))
    observed = np.array([[MASKED, MASKED], [MASKED, 1]])
    inpainted = [
        inpaint_codes(sampler, observed, 0.5, 1, seed, batch_size=40)["codes"][0]
        for seed in range(60)
    ]
    assert (np.array(inpainted)[:, 1, 1] == 1).all()
    assert 0.8 < np.mean(inpainted, axis=0)[0, 0] <= 1
    # Plain sampling ignores the last code.
    fixed = np.broadcast_to(observed, (256, 2, 2))
    plain = sampler(position[:256], uniform_noise(0, range(256), (2, 2)), fixed)["codes"]
    assert 0.4 < plain[:, 0, 0].mean() < 0.6


def test_inpainted_grids_are_reproducible_and_differ():
    sampler = Sampler(tiny_pixelcnn(layers=1, attention_layers=0))
    observed = np.full(GRID, MASKED)
    observed[:2] = 3
    first = inpaint_codes(sampler, observed, 0.4, 3, seed=1)
    assert first["codes"].shape == (3, *GRID)
    assert (first["codes"][:, :2] == 3).all()
    assert len(np.unique(first["codes"].reshape(3, -1), axis=0)) == 3
    again = inpaint_codes(sampler, observed, 0.4, 3, seed=1)
    np.testing.assert_array_equal(first["codes"], again["codes"])


@pytest.mark.slow
def test_most_likely_position_explains_the_observed_codes():
    """The training grids hold code 0 at position 0 and code 1 at position 1."""
    positions = np.repeat(np.float32([0, 1]), 16)
    codes = np.broadcast_to(positions[:, None, None], (32, *GRID)).astype("int32")
    sampler = Sampler(trained(GRID, codes, positions))
    observed = np.full(GRID, MASKED)
    for code in (0, 1):
        observed[-1] = code
        assert most_likely_position(sampler, observed, np.float32([0, 1]), seed=0) == code


def test_position_of_a_fully_masked_grid_raises():
    sampler = Sampler(tiny_pixelcnn())
    with pytest.raises(InputError, match="`position`"):
        most_likely_position(sampler, np.full(GRID, MASKED), np.float32([0, 1]), seed=0)
