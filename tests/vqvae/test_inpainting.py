import re

import numpy as np
import pytest
from helpers import pictures, tiny_model
from scipy import ndimage

from brainslices.errors import InputError
from vqvae.inpainting import Inpainting
from vqvae.model import VQVAE

MASKED = -1
# Parts of an image of 64 x 64 pixels, whose crop is 40 x 48 from (12, 8).
HIDDEN = {
    "lower half": None,
    "hole": (28, 26, 9, 10),
    "one pixel": (30, 31, 1, 1),
    "row": (24, 0, 1, 64),
    "edge of the crop": (0, 0, 20, 64),
    "corner": (45, 50, 19, 14),
}


@pytest.fixture(scope="module")
def model(trained_vqvae):
    return VQVAE.from_run(trained_vqvae, "float32")


@pytest.fixture(scope="module")
def image(phantom_archive):
    return phantom_archive.images[phantom_archive.indices("test")[4]]


def hidden_pixels(hidden, shape=(64, 64)):
    """Bool array of the image, True in the hidden part."""
    top, left, rows, cols = hidden or (shape[0] // 2, 0, shape[0], shape[1])
    inside = np.zeros(shape, bool)
    inside[top : top + rows, left : left + cols] = True
    return inside


def hidden_codes(hidden, model):
    """Bool array of the code grid, True where a code's part of the crop has a hidden pixel.

    Found on a grid 12 times as fine as the pixels.
    """
    top, left, *sides = model.crop
    fine = np.kron(hidden_pixels(hidden, model.image_shape), np.ones((12, 12), bool))
    grid = np.zeros(model.code_grid_shape, bool)
    for row, col in np.ndindex(grid.shape):
        spans = []
        for start, number, side, cells in zip(
            (top, left), (row, col), sides, model.code_grid_shape, strict=True
        ):
            edges = [12 * (start + (number + end) * side / cells) for end in (0, 1)]
            spans.append(slice(max(0, int(np.floor(edges[0] + 1e-6))), max(0, int(edges[1]))))
        grid[row, col] = fine[tuple(spans)].any()
    return grid


def dilate(codes, steps):
    """The codes and their neighbours up to `steps` away, diagonals included."""
    return ndimage.binary_dilation(codes, np.ones((3, 3)), iterations=steps)


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_hidden_pixels_affect_neither_observed_codes_nor_inpainted_image(model, image, hidden):
    codes = np.random.default_rng(0).integers(0, 32, (2, *model.code_grid_shape))
    results = []
    for fill in (0, 255, np.random.default_rng(1).integers(0, 256, image.shape)):
        filled = np.where(hidden_pixels(hidden), fill, image).astype("uint8")
        inpainting = Inpainting(model, filled, hidden)
        results.append((inpainting.observed_codes(MASKED), inpainting.decode(codes)))
    for observed, inpainted in results[1:]:
        np.testing.assert_array_equal(observed, results[0][0])
        np.testing.assert_array_equal(inpainted, results[0][1])


def check_masked(observed, hidden, receptive_field=2):
    """Codes of the hidden part and next to it are masked, others only in its receptive field."""
    assert (observed == MASKED)[dilate(hidden, 1)].all()
    assert not (observed == MASKED)[~dilate(hidden, receptive_field)].any()


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_codes_of_the_hidden_part_and_next_to_it_are_masked(model, image, hidden):
    observed = Inpainting(model, image, hidden).observed_codes(MASKED)
    assert (observed.dtype, observed.shape) == (np.int32, model.code_grid_shape)
    check_masked(observed, hidden_codes(hidden, model))
    assert observed.max() < 32


@pytest.mark.parametrize(
    "hidden", [None, (7, 6, 5, 5), (0, 0, 3, 20), (15, 0, 5, 20), (3, 0, 1, 1)]
)
def test_codes_of_fractional_pixels_and_a_crop_beyond_the_image(hidden):
    """Codes of 3.2 x 3.4 pixels, in a crop that extends beyond the image on both sides."""
    model = tiny_model(magnification=1.2)
    observed = Inpainting(model, pictures(1)[0], hidden).observed_codes(MASKED)
    check_masked(observed, hidden_codes(hidden, model), receptive_field=4)


@pytest.mark.parametrize("hidden", [None, (28, 26, 9, 10), (0, 0, 20, 64)])
def test_codes_outside_the_receptive_field_are_those_of_the_whole_image(model, image, hidden):
    """The tiny encoder sees 7 pixels around a code's own 4: two codes on each side."""
    observed = Inpainting(model, image, hidden).observed_codes(MASKED)
    whole = np.asarray(model.encode_to_codes((image / np.float32(255))[None, ..., None]))[0]
    away = ~dilate(hidden_codes(hidden, model), 2)
    assert away.sum() >= 20
    np.testing.assert_array_equal(observed[away], whole[away])


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_observed_pixels_stay_and_hidden_ones_are_decoded(model, image, hidden):
    codes = np.random.default_rng(0).integers(0, 32, (3, *model.code_grid_shape))
    inpainted = Inpainting(model, image, hidden).decode(codes)
    assert (inpainted.dtype, inpainted.shape) == (np.float32, (3, 64, 64, 1))
    inside = hidden_pixels(hidden)
    levels = np.rint(255 * inpainted[..., 0]).astype("uint8")
    np.testing.assert_array_equal(levels[:, ~inside], np.tile(image[~inside], (3, 1)))
    decoded = np.asarray(model.decode_codes(codes))[..., 0]
    np.testing.assert_array_equal(inpainted[:, inside, 0], decoded[:, inside])


def test_float_and_8_bit_images_with_or_without_channel_are_the_same(model, image):
    scaled = image / np.float32(255)
    expected = Inpainting(model, image).observed_codes(MASKED)
    for same in (image[..., None], scaled, scaled[..., None]):
        inpainting = model.inpainting(same)
        assert (inpainting.image.dtype, inpainting.hidden) == (np.float32, (32, 0, 32, 64))
        np.testing.assert_array_equal(inpainting.image, scaled)
        np.testing.assert_array_equal(inpainting.observed_codes(MASKED), expected)


def test_lower_half_is_hidden_by_default(model, image):
    observed = Inpainting(model, image).observed_codes(MASKED)
    lower_half = Inpainting(model, image, (32, 0, 32, 64))
    np.testing.assert_array_equal(observed, lower_half.observed_codes(MASKED))
    assert (observed[:3] != MASKED).all()
    assert (observed[4:] == MASKED).all()  # pixel 32 is the first of row 5 of the grid


def test_lower_half_of_an_odd_image_has_its_middle_row():
    model = tiny_model(image_shape=(25, 20))
    inpainting = Inpainting(model, np.full((25, 20), 9, "uint8"))
    inpainted = inpainting.decode(np.zeros((1, *model.code_grid_shape), "int32"))[0, ..., 0]
    assert (inpainted[:12] == np.float32(9) / 255).all()
    assert (inpainted[12:] != np.float32(9) / 255).any(axis=1).all()


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_mask_of_a_box_is_the_box(model, image, hidden):
    box, mask = Inpainting(model, image, hidden), Inpainting(model, image, hidden_pixels(hidden))
    assert mask.hidden == box.hidden
    np.testing.assert_array_equal(mask.mask, box.mask)
    np.testing.assert_array_equal(mask.observed_codes(MASKED), box.observed_codes(MASKED))


def test_mask_of_any_shape_hides_its_pixels_alone(model, image):
    rows, cols = np.indices(image.shape)
    hidden = abs(rows - cols) < 3
    hidden[:20] = hidden[45:] = False
    codes = np.random.default_rng(0).integers(0, 32, (1, *model.code_grid_shape))
    results = []
    for fill in (0, 255):
        inpainting = Inpainting(model, np.where(hidden, fill, image).astype("uint8"), hidden)
        results.append((inpainting.observed_codes(MASKED), inpainting.decode(codes)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    expected = image[~hidden] / np.float32(255)
    np.testing.assert_array_equal(results[0][1][0, ..., 0][~hidden], expected)
    # The corners of the box around the diagonal stay observed.
    observed = results[0][0] != MASKED
    assert (
        observed.mean()
        > (Inpainting(model, image, inpainting.hidden).observed_codes(-1) >= 0).mean()
    )


def test_mask_that_is_no_mask_of_the_image_is_refused(model, image):
    for mask in (np.zeros((3, 3), bool), np.zeros(image.shape)):
        with pytest.raises(InputError, match="`hidden` must be a box, or a bool array"):
            Inpainting(model, image, mask)
    with pytest.raises(InputError, match="non-empty part"):
        Inpainting(model, image, np.zeros(image.shape, bool))


def test_whole_image_may_be_hidden(model, image):
    assert (Inpainting(model, image, (0, 0, 64, 64)).observed_codes(MASKED) == MASKED).all()


@pytest.mark.parametrize(
    "hidden",
    [
        (0, 0, 0, 10),
        (0, 0, 10, 0),
        (10, 10, -3, 5),
        (-1, 0, 10, 10),
        (0, -1, 10, 10),
        (60, 0, 5, 10),
        (0, 60, 10, 5),
        (0, 0, 65, 64),
        (70, 70, 5, 5),
        (0, 0, 0, 0),
    ],
)
def test_hidden_part_that_is_empty_or_not_inside_is_refused(model, image, hidden):
    with pytest.raises(InputError, match=re.escape(f"hidden={hidden}")):
        Inpainting(model, image, hidden)


@pytest.mark.parametrize("hidden", [(0, 0, 12, 64), (52, 0, 12, 64), (0, 0, 64, 8), (20, 56, 9, 8)])
def test_hidden_part_outside_the_crop_is_refused(model, image, hidden):
    with pytest.raises(InputError, match="`hidden`") as caught:
        Inpainting(model, image, hidden).observed_codes(MASKED)
    assert "40 x 48 pixels from (12, 8)" in str(caught.value)
    assert f"hidden={hidden}" in str(caught.value)


@pytest.mark.parametrize("shape", [(64, 65), (63, 64), (1, 64, 64, 1), (64, 64, 3)])
def test_image_of_another_size_is_refused(model, shape):
    with pytest.raises(InputError, match="`image`.*64 x 64 pixels") as caught:
        Inpainting(model, np.zeros(shape, "uint8"))
    assert f"image.shape={shape}" in str(caught.value)
