"""The search for codes against all grids of a tiny model, and its loss against training's."""

import itertools

import numpy as np
import pytest
from helpers import pictures, scatter_codes, tiny_model

from brainslices.errors import InputError
from vqvae.code_search import CodeSearch, _overlaps, _sum_around, loss_map
from vqvae.config import Encoding

pytestmark = pytest.mark.usefixtures("fresh_keras")

WEIGHTS = {"l1_weight": 1.0, "mse_weight": 0.5, "ssim_weight": 3.0, "foreground_share": 0.7}


@pytest.fixture(scope="module")
def model():
    return scatter_codes(tiny_model(**WEIGHTS))


@pytest.fixture(scope="module")
def tiny_grid():
    """2 x 2 codes of three, so that all 81 grids can be decoded."""
    shape = {"image_shape": (16, 16), "crop": (0, 0, 16, 16), "magnification": 0.5}
    model = tiny_model(**shape, num_embeddings=3, **WEIGHTS)
    latents = np.asarray(model.encode(pictures(8, (16, 16)))).reshape(-1, 4)
    model.quantizer._assign_codebook(latents[[0, 13, 30]])
    return model


def table_of_nats(codes, seed=0, size=3):
    """Nats that depend on the place and on the code before it."""
    table = np.random.default_rng(seed).uniform(0, 3, (4, size, size + 1)).astype("float32")
    flat = codes.reshape(len(codes), -1)
    before = np.concatenate([np.full((len(codes), 1), size), flat[:, :-1]], axis=1)
    nats = np.stack([table[place][:, before[:, place]].T for place in range(4)], axis=1)
    return nats.reshape(*codes.shape, size)


def entropy_model(codes, candidates, rows):
    return np.take_along_axis(table_of_nats(codes), candidates, axis=-1)


def search(model, images, **options):
    """Codes and nats of a search."""
    return CodeSearch(model, Encoding(**options))(images, model.encode(images))


def costs(model, images, codes, rate_weight=0.0):
    decoded = model.decode_codes(codes)
    losses = np.asarray(loss_map(model, images, decoded)).sum(axis=(1, 2, 3))
    nats = np.take_along_axis(table_of_nats(codes), codes[..., None], -1).sum(axis=(1, 2, 3))
    return losses + rate_weight * nats / np.log(2) / 256


def test_map_sums_to_the_loss_of_training(model):
    images = pictures(3)
    decoded = model.decode_codes(model.encode_to_codes(images))
    sums = np.asarray(loss_map(model, images, decoded)).sum(axis=(1, 2, 3))
    expected = model._reconstruction_loss(model.cut(images), model.cut(decoded))
    assert sums.mean() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("cells", "pixels"), [(4, 16), (5, 12), (7, 7), (9, 5)])
def test_cells_share_the_pixels(cells, pixels):
    weights = _overlaps(cells, pixels)
    assert weights.shape == (cells, pixels)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), pixels / cells, rtol=1e-6)


def test_sum_around_is_that_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    sums = np.asarray(_sum_around(values))
    for row, col in itertools.product(range(5), range(4)):
        window = values[:, max(0, row - 1) : row + 2, max(0, col - 1) : col + 2]
        np.testing.assert_allclose(sums[:, row, col], window.sum(axis=(1, 2)), atol=1e-5)


def test_without_sweeps_the_codes_are_the_nearest(model):
    codes, nats = search(model, images := pictures(3))
    np.testing.assert_array_equal(codes, model.encode_to_codes(images))
    assert nats is None and codes.dtype == "int32"


def test_sweeps_lower_the_loss_of_every_image(model):
    images = pictures(6)
    losses = []
    for sweeps in range(3):
        codes, _ = search(model, images, sweeps=sweeps)
        decoded = model.decode_codes(codes)
        losses.append(np.asarray(loss_map(model, images, decoded)).sum(axis=(1, 2, 3)))
    assert (losses[1] < losses[0]).all()
    assert (losses[2] <= losses[1] + 1e-6).all()


@pytest.mark.parametrize("rate_weight", [0.0, 1.0, 1000.0])
def test_cost_lies_between_the_best_of_all_grids_and_the_nearest_codes(tiny_grid, rate_weight):
    images = pictures(5, (16, 16))
    options = {"sweeps": 3, "rate_weight": rate_weight, "entropy_model": entropy_model}
    codes, nats = search(tiny_grid, images, **options)
    expected = np.take_along_axis(table_of_nats(codes), codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, expected)
    reached = costs(tiny_grid, images, codes, rate_weight)
    nearest = np.asarray(tiny_grid.encode_to_codes(images))
    assert (reached <= costs(tiny_grid, images, nearest, rate_weight) + 1e-5).all()
    grids = np.array(list(itertools.product(range(3), repeat=4)), "int32").reshape(-1, 2, 2)
    # All grids of the first image, then of the second.
    every, grids = np.repeat(images, len(grids), axis=0), np.tile(grids, (len(images), 1, 1))
    of_grids = costs(tiny_grid, every, grids, rate_weight)
    best = of_grids.reshape(len(images), -1).min(axis=1)
    assert (reached >= best - 1e-5).all()
    if rate_weight < 1000:  # greater weights make the bits of later codes matter most
        assert np.median((reached - best) / best) < 0.05


def test_search_of_an_image_does_not_depend_on_its_batch(model):
    images = pictures(4)
    images[3] = 0  # no foreground
    whole, part = search(model, images, sweeps=2), search(model, images[1:3], sweeps=2)
    np.testing.assert_array_equal(whole[0][1:3], part[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook": "gradient"},
        {"l2_normalized": True},
        {"ssim_weight": 0.0},
        {"num_embeddings": 2},
    ],
)
def test_every_kind_of_model_is_searched(changes):
    model, images = scatter_codes(tiny_model(**{**WEIGHTS, **changes})), pictures(3)
    losses = []
    for sweeps in (0, 1):
        codes, _ = search(model, images, sweeps=sweeps)
        decoded = model.decode_codes(codes)
        losses.append(np.asarray(loss_map(model, images, decoded)).sum(axis=(1, 2, 3)))
    assert (losses[1] <= losses[0] + 1e-6).all()
    assert (losses[1] < losses[0] - 1e-4).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": -1}, "`sweeps` must be at least 0"),
        ({"rate_weight": float("nan")}, "`rate_weight` must be a finite number"),
        ({"rate_weight": 1.0, "sweeps": 1}, "`rate_weight` must be 0 without both sweeps"),
        ({"rate_weight": 1.0, "entropy_model": print}, "`rate_weight` must be 0 without both"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Encoding(**options)
