import numpy as np
import pytest

from brainslices.errors import InputError
from pixelcnn.masks import SCANS, raster_mask, scan_order, stack_mask


def test_raster_masks_are_the_paper_s():
    np.testing.assert_array_equal(raster_mask(3, "A"), [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(raster_mask(3, "B"), [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert raster_mask(1, "A").tolist() == [[0]]
    assert raster_mask(1, "B").tolist() == [[1]]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_the_receptive_fields_of_the_two_stacks_add_up_to_raster_order(size, mask_type):
    whole = np.zeros((size, size))
    above, left = size // 2 + 1, size // 2 + 1
    # The horizontal stack gets the rows above only from the vertical stack, whatever its type.
    whole[:above] += stack_mask("vertical", size, "A")
    whole[size // 2, :left] += stack_mask("horizontal", size, mask_type)[0]
    np.testing.assert_array_equal(whole, raster_mask(size, mask_type))


@pytest.mark.parametrize("size", [3, 5])
def test_vertical_mask_includes_the_row_of_the_centre_for_type_b_only(size):
    assert stack_mask("vertical", size, "A").shape == (size // 2 + 1, size)
    assert stack_mask("vertical", size, "A")[:-1].all()
    assert not stack_mask("vertical", size, "A")[-1].any()
    assert stack_mask("vertical", size, "B").all()


@pytest.mark.parametrize("stack", ["vertical", "horizontal"])
def test_invalid_masks_raise(stack):
    for size in (0, 2, -3):
        with pytest.raises(InputError, match=f"`size` .* Received: size={size}"):
            stack_mask(stack, size, "A")
    with pytest.raises(InputError, match="`mask_type` .* Received: mask_type='C'"):
        stack_mask(stack, 3, "C")


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (5, 4), (22, 26)])
def test_a_scan_visits_every_cell_once(scan, shape):
    order = scan_order(shape, scan)
    assert sorted(order.ravel().tolist()) == list(range(shape[0] * shape[1]))
    assert order.shape == (shape if scan == "raster" else shape[::-1])


def test_scans_by_hand():
    assert scan_order((3, 2), "raster").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert scan_order((3, 2), "turned").tolist() == [[0, 2, 4], [1, 3, 5]]


def test_unknown_scan_raises():
    with pytest.raises(InputError, match="`scan` .* Received: scan='spiral'"):
        scan_order((2, 2), "spiral")
