"""Slice positions of images that come without one."""

from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tiny_prior import GRID, tiny_pixelcnn

from brainslices.data.archive import SliceRecord
from brainslices.data.slices import Slices
from brainslices.runs.run import Run
from pixelcnn.positions import estimate_positions, slice_positions
from pixelcnn.provenance import Provenance

pytestmark = pytest.mark.usefixtures("fresh_keras")

# The value of an image is that of its codes.
DECODER = SimpleNamespace(
    encode_to_codes=lambda images: np.broadcast_to(
        np.rint(np.asarray(images)[:, :1, :1, 0] * 255).astype("int32"), (len(images), *GRID)
    )
)


@pytest.fixture(scope="module")
def prior():
    """The training grids hold code 0 at position 0, 1 at 0.5 and 2 at 1."""
    positions = np.repeat(np.float32([0, 0.5, 1]), 8)
    codes = np.broadcast_to(np.rint(positions * 2)[:, None, None], (24, *GRID)).astype("int32")
    model = tiny_pixelcnn(GRID, 3, fill=False, layers=1, attention_layers=0)
    model.compile(keras.optimizers.Adam(0.03))
    inputs = {"codes": codes, "position": positions}
    model.fit(inputs, epochs=60, batch_size=24, verbose=0)
    provenance = Provenance(Run("none"), np.sort(positions), {})
    return SimpleNamespace(model=model, provenance=provenance, decoder=DECODER)


def slices_of(positions):
    records = [SliceRecord(f"s{k}", "a", "", position, "") for k, position in enumerate(positions)]
    images = [np.full((4, 4), k % 3, "uint8") for k in range(len(positions))]
    return Slices(Path("folder"), records, images.__getitem__, None, None)


@pytest.mark.slow
def test_estimated_position_is_the_likeliest_of_the_trained_ones(prior):
    codes = np.stack([np.full(GRID, code) for code in (2, 0, 1, 2)])
    np.testing.assert_array_equal(estimate_positions(prior, codes, 3), [1, 0, 0.5, 1])


@pytest.mark.slow
def test_only_positions_that_the_data_does_not_state_are_estimated(prior, caplog):
    np.testing.assert_array_equal(
        slice_positions(prior, slices_of([0.1, 0.2])), np.float32([0.1, 0.2])
    )
    assert not caplog.messages
    positions = slice_positions(prior, slices_of([np.nan, 0.7, np.nan]))
    np.testing.assert_array_equal(positions, np.float32([0, 0.7, 1]))
    assert "2 images of folder have no slice position" in caplog.text
    assert "0.00 to 1.00" in caplog.text
