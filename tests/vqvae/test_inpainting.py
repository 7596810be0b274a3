import numpy as np
import pytest
from helpers import pictures, tiny_model

from brainslices.errors import InputError
from brainslices.runs.run import Run
from vqvae.inpainting import Inpainting
from vqvae.model import VQVAE

MASKED = -1
# Of pictures of 64 x 64 pixels, of which the crop is 40 x 48 from (12, 8) on.
HOLES = {
    "lower half": None,
    "hole": (28, 26, 9, 10),
    "one pixel": (30, 31, 1, 1),
    "row": (24, 0, 1, 64),
    "edge of the crop": (0, 0, 20, 64),
    "corner": (45, 50, 19, 14),
}


@pytest.fixture(scope="module")
def model(trained_vqvae):
    return VQVAE.from_run(Run(trained_vqvae), "float32")


@pytest.fixture(scope="module")
def picture(phantom_archive):
    return phantom_archive.images[phantom_archive.indices("test")[4]]


def window(hidden, shape=(64, 64)):
    """Where the hidden part lies, as a bool array."""
    top, left, rows, cols = hidden or (shape[0] // 2, 0, shape[0], shape[1])
    inside = np.zeros(shape, bool)
    inside[top : top + rows, left : left + cols] = True
    return inside


def cells_with(hidden, model):
    """Codes whose share of the crop has a hidden pixel in it; pixels are cut fine to tell."""
    top, left, *sides = model.crop
    fine = np.kron(window(hidden, model.image_shape), np.ones((12, 12), bool))
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


def grown(cells, steps):
    """The cells and all that lie so many steps around them, corners too."""
    around = np.pad(cells, steps)
    rows, cols = cells.shape
    shifted = [
        around[down : down + rows, right : right + cols]
        for down in range(2 * steps + 1)
        for right in range(2 * steps + 1)
    ]
    return np.any(shifted, axis=0)


@pytest.mark.parametrize("hidden", HOLES.values(), ids=HOLES)
def test_nothing_hidden_changes_what_is_known_or_completed(model, picture, hidden):
    codes = np.random.default_rng(0).integers(0, 32, (2, *model.code_grid_shape))
    found = []
    for filling in (0, 255, np.random.default_rng(1).integers(0, 256, picture.shape)):
        task = Inpainting(model, np.where(window(hidden), filling, picture).astype("uint8"), hidden)
        found.append((task.observed_codes(MASKED), task.decode(codes)))
    for known, completed in found[1:]:
        np.testing.assert_array_equal(known, found[0][0])
        np.testing.assert_array_equal(completed, found[0][1])


def _check_unknown(known, cells, reach=2):
    """Codes of the hidden part and next to it are unknown; others only as far as it reaches."""
    assert (known == MASKED)[grown(cells, 1)].all()
    assert not (known == MASKED)[~grown(cells, reach)].any()


@pytest.mark.parametrize("hidden", HOLES.values(), ids=HOLES)
def test_unknown_are_the_codes_of_the_hidden_part_and_next_to_it(model, picture, hidden):
    known = Inpainting(model, picture, hidden).observed_codes(MASKED)
    assert (known.dtype, known.shape) == (np.int32, model.code_grid_shape)
    _check_unknown(known, cells_with(hidden, model))
    assert known.max() < 32


@pytest.mark.parametrize(
    "hidden", [None, (7, 6, 5, 5), (0, 0, 3, 20), (15, 0, 5, 20), (3, 0, 1, 1)]
)
def test_cells_that_do_not_divide_the_crop_and_a_crop_beyond_the_picture(hidden):
    """Codes of 3.2 x 3.4 pixels, in a crop that reaches beyond the picture on both sides."""
    model = tiny_model(magnification=1.2)
    picture = np.rint(255 * pictures(1)[0, ..., 0]).astype("uint8")
    known = Inpainting(model, picture, hidden).observed_codes(MASKED)
    _check_unknown(known, cells_with(hidden, model), reach=4)


@pytest.mark.parametrize("hidden", [None, (28, 26, 9, 10), (0, 0, 20, 64)])
def test_codes_out_of_reach_are_those_of_the_whole_picture(model, picture, hidden):
    """The tiny encoder sees 7 pixels around a code's own 4: two codes on each side."""
    known = Inpainting(model, picture, hidden).observed_codes(MASKED)
    image = (picture / np.float32(255))[None, ..., None]
    whole = np.asarray(model.encode_to_codes(image))[0]
    away = ~grown(cells_with(hidden, model), 2)
    assert away.sum() >= 20
    np.testing.assert_array_equal(known[away], whole[away])


@pytest.mark.parametrize("hidden", HOLES.values(), ids=HOLES)
def test_known_pixels_are_kept_and_hidden_ones_decoded(model, picture, hidden):
    codes = np.random.default_rng(0).integers(0, 32, (3, *model.code_grid_shape))
    completed = Inpainting(model, picture, hidden).decode(codes)
    assert (completed.dtype, completed.shape) == (np.float32, (3, 64, 64, 1))
    inside = window(hidden)
    kept = np.rint(255 * completed[..., 0]).astype("uint8")
    np.testing.assert_array_equal(kept[:, ~inside], np.tile(picture[~inside], (3, 1)))
    decoded = np.asarray(model.decode_codes(codes))[..., 0]
    np.testing.assert_array_equal(completed[:, inside, 0], decoded[:, inside])


def test_lower_half_is_hidden_where_nothing_is_said(model, picture):
    whole = Inpainting(model, picture).observed_codes(MASKED)
    np.testing.assert_array_equal(
        whole, Inpainting(model, picture, (32, 0, 32, 64)).observed_codes(MASKED)
    )
    assert (whole[:3] != MASKED).all()
    assert (whole[4:] == MASKED).all()  # pixel 32 is the first of row 5 of the grid


def test_lower_half_of_an_odd_picture_has_its_middle_row():
    model = tiny_model(image_shape=(25, 20))
    task = Inpainting(model, np.full((25, 20), 9, "uint8"))
    completed = task.decode(np.zeros((1, *model.code_grid_shape), "int32"))[0, ..., 0]
    assert (completed[:12] == np.float32(9) / 255).all()
    assert (completed[12:] != np.float32(9) / 255).any(axis=1).all()


def test_whole_picture_may_be_hidden(model, picture):
    assert (Inpainting(model, picture, (0, 0, 64, 64)).observed_codes(MASKED) == MASKED).all()


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
def test_hidden_part_that_is_empty_or_not_inside_is_refused(model, picture, hidden):
    with pytest.raises(InputError) as caught:
        Inpainting(model, picture, hidden)
    assert "`hidden` must be a part of the picture of 64 x 64 pixels" in str(caught.value)
    assert f"hidden={hidden} (top, left, rows, cols)" in str(caught.value)


@pytest.mark.parametrize("hidden", [(0, 0, 12, 64), (52, 0, 12, 64), (0, 0, 64, 8), (20, 56, 9, 8)])
def test_hidden_part_outside_of_the_crop_is_refused(model, picture, hidden):
    with pytest.raises(InputError, match=r"40 x 48 pixels from \(12, 8\) on. Give a --hidden"):
        Inpainting(model, picture, hidden).observed_codes(MASKED)


@pytest.mark.parametrize("shape", [(64, 65), (63, 64), (128, 128)])
def test_picture_of_another_size_is_refused(model, shape):
    with pytest.raises(InputError) as caught:
        Inpainting(model, np.zeros(shape, "uint8"))
    assert f"has {shape[0]} x {shape[1]} pixels (rows x cols)" in str(caught.value)
    assert "takes 64 x 64. Give one of that size." in str(caught.value)
