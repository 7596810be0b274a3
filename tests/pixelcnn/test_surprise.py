"""Surprise of codes against brute force, and its maps."""

import numpy as np
import pytest
from tiny_prior import CODES, GRID, tiny_pixelcnn

from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from pixelcnn.surprise import Surprise, nearest_positions, spread_over_pixels

pytestmark = pytest.mark.usefixtures("fresh_keras")

POSITIONS = np.repeat(np.linspace(0, 1, 5, dtype="float32"), 9)
SUBJECTS = np.array([f"case_{k % 9}" for k in range(len(POSITIONS))])


def random_codes(count, seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (count, *GRID), "int32")


@pytest.fixture(scope="module")
def surprise():
    model = tiny_pixelcnn(layers=1, attention_layers=0)
    return Surprise(model, random_codes(len(POSITIONS)), POSITIONS, SUBJECTS, batch_size=7)


def test_nats_are_those_of_the_model_in_any_batch(surprise):
    expected = -np.asarray(surprise.model.log_prob(random_codes(len(POSITIONS)), POSITIONS))
    np.testing.assert_allclose(surprise.reference_nats, expected, rtol=1e-4, atol=1e-5)


def test_surprise_is_the_excess_over_the_nearest_validation_slices(surprise):
    codes, positions = random_codes(3, seed=1), np.float32([0.05, 0.5, 0.9])
    nats = surprise.nats(codes, positions)
    values, percentiles = surprise.compare(nats, positions, np.array(["other", "case_3", "other"]))
    # At least 30 slices, 9 at each position (8 without the own subject): four of the five, or all
    # five where two are as far away.
    neighbours = [
        POSITIONS < 0.8,
        SUBJECTS != "case_3",
        POSITIONS > 0.2,
    ]
    for row, near in enumerate(neighbours):
        reference = surprise.reference_nats[near]
        assert len(reference) >= 30
        np.testing.assert_allclose(values[row], nats[row] - reference.mean(axis=0), atol=1e-5)
        cheaper = (reference.mean(axis=(1, 2)) < nats[row].mean()).mean()
        assert percentiles[row] == pytest.approx(100 * cheaper)


def test_a_validation_slice_is_not_compared_with_its_own_subject(surprise):
    others = surprise.reference_nats[SUBJECTS[20] != SUBJECTS]
    expected = surprise.reference_nats[20] - others.mean(axis=0)
    np.testing.assert_allclose(surprise.reference_surprise[20], expected, atol=1e-5)


def test_a_single_validation_subject_is_compared_with_itself():
    model = tiny_pixelcnn(layers=1, attention_layers=0)
    single = Surprise(model, random_codes(2), np.float32([0.5, 0.5]), np.array(["a", "a"]))
    np.testing.assert_allclose(single.reference_surprise.sum(axis=0), 0, atol=1e-5)


def test_no_validation_slices_are_an_error(surprise):
    with pytest.raises(InputError, match="at least one validation slice"):
        Surprise(surprise.model, random_codes(0), POSITIONS[:0], SUBJECTS[:0])


def test_conditions_are_not_part_of_the_position():
    model = tiny_pixelcnn(
        layers=1,
        attention_layers=0,
        conditions=("age",),
        condition_variables=({"name": "age", "low": 20, "high": 80},),
    )
    inputs = np.column_stack([POSITIONS, np.linspace(0, 1, len(POSITIONS))]).astype("float32")
    surprise = Surprise(model, random_codes(len(POSITIONS)), inputs, SUBJECTS)
    expected = surprise.reference_nats[POSITIONS > 0.2].mean(axis=0)
    nats = surprise.reference_nats[:1]
    values, _ = surprise.compare(nats, np.float32([[0.9, 0.1]]), np.array(["other"]))
    np.testing.assert_allclose(values[0], nats[0] - expected, atol=1e-5)


def test_ties_with_the_last_neighbour_are_included():
    positions = np.array([0.0, 0.2, 0.2, 0.6, 0.6, 1.0])
    assert nearest_positions(positions, 0.4, 3).tolist() == [1, 2, 3, 4]
    assert nearest_positions(positions, 0.0, 99).tolist() == list(range(6))


def test_maps_put_a_code_where_its_pixels_are():
    values = np.zeros((1, 4, 5))
    values[0, 1, 3] = 2.0
    crop = CropBox(top=10, left=-5, rows=40, cols=50)
    (pixels,) = spread_over_pixels(values, crop, (64, 64))
    assert pixels.shape == (64, 64)
    # Code (1, 3) covers the rows 10 to 19 and the cols 30 to 39 of the crop.
    rows, cols = np.nonzero(pixels > 1.0)
    assert (rows.min(), rows.max()) == (10 + 10, 10 + 19)
    assert (cols.min(), cols.max()) == (30 - 5, 39 - 5)
    outside = np.ones((64, 64), bool)
    outside[10:50, :45] = False
    assert (pixels[outside] == 0).all()
