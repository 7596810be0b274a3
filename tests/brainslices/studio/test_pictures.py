import numpy as np

from brainslices.data.crop import CropBox
from brainslices.studio.pictures import (
    CELL,
    PENDING,
    cell_at,
    code_grid,
    grey,
    hidden_mask,
    overlay,
    partial,
    similarity,
)


def test_grey_levels_survive():
    levels = np.arange(256, dtype="uint8").reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(grey(levels / 255)), levels)


def test_similarity_rises_from_dark_at_0_to_light_at_1():
    values = np.repeat([-1.0, 0.0, 0.5, 1.0], 200)[None]
    picture = np.asarray(similarity(values)).sum(axis=2)[0, 100::200]
    assert picture[0] == picture[1] < picture[2] < picture[3]


def test_every_cell_of_the_grid_is_found_by_its_pixels():
    codes = np.arange(6).reshape(2, 3)
    picture = np.asarray(code_grid(codes, 6, (1, 2)))
    assert picture.shape == (2 * CELL, 3 * CELL, 3)
    colours = set()
    for row, col in np.ndindex(2, 3):
        y, x = row * CELL + CELL // 2, col * CELL + CELL // 2
        assert cell_at(x, y, (2, 3)) == (row, col)
        colours.add(tuple(picture[y, x]))
    assert len(colours) == 6
    assert (picture[CELL, 2 * CELL : 3 * CELL] == 255).all()  # the outline of the selected cell


def test_partial_shows_only_what_is_sampled():
    image = np.linspace(0.2, 1, 8 * 9).reshape(8, 9)
    crop, is_sampled = CropBox(2, 1, 4, 6), np.array([[True, False], [False, True]])
    shown = partial(image, is_sampled, crop)
    content = crop.cut(image[None])[0]
    np.testing.assert_array_equal(shown[:2, :3], content[:2, :3])
    np.testing.assert_array_equal(shown[2:, 3:], content[2:, 3:])
    assert (shown[:2, 3:] == PENDING).all()
    assert (shown[2:, :3] == PENDING).all()


def test_overlay_leaves_what_is_not_surprising():
    image, values = np.full((8, 600), 0.5), np.repeat([-1.0, 0.0, 4.0, 8.0], 150)[None].repeat(8, 0)
    shown = overlay(image, values, 8.0)[4, 75::150]
    assert (shown[:2] == 0.5).all()
    assert shown[3].sum() > shown[2].sum()
    assert shown[2, 0] > shown[2, 2]  # opaque: red, not grey


def test_mask_is_the_union_of_opaque_paint():
    first, second = np.zeros((2, 4, 4, 4), "uint8")
    first[0, :, 3], second[:, 0, 3] = 255, 200
    first[3, 3] = 255, 255, 255, 40  # the soft rim of a brush
    mask = hidden_mask([first, second], (4, 4))
    expected = np.zeros((4, 4), bool)
    expected[0], expected[:, 0] = True, True
    np.testing.assert_array_equal(mask, expected)
    assert not hidden_mask([], (4, 4)).any()


def test_mask_of_a_larger_canvas_is_scaled():
    layer = np.zeros((8, 8, 4), "uint8")
    layer[:4, :, 3] = 255
    np.testing.assert_array_equal(hidden_mask([layer], (4, 4))[:, 0], [True, True, False, False])
