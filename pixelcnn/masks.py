"""Masks of the masked convolutions, and scan orders of the code grid. Pure NumPy.

A mask covers only the part of a square kernel that its stack can use: that of the vertical stack
ends with the centre's row, that of the horizontal stack with the centre.
"""

from typing import Literal, get_args

import numpy as np

from brainslices.errors import InputError

__all__ = ["SCANS", "MaskType", "Scan", "Stack", "raster_mask", "scan_order", "stack_mask"]

MaskType = Literal["A", "B"]
Stack = Literal["vertical", "horizontal"]
Scan = Literal["raster", "turned"]
SCANS = get_args(Scan)


def raster_mask(size: int, mask_type: MaskType) -> np.ndarray:
    """Return the mask of a whole square kernel: the cells before the centre in raster order.

    Args:
        size: odd side of the kernel.
        mask_type: "A" masks the centre, "B" does not.

    Returns:
        float32 array of shape (size, size), 1 where the kernel may be nonzero.

    Raises:
        InputError: if `size` is even or not positive, or `mask_type` unknown.

    Example:
        >>> raster_mask(3, "A").astype(int).tolist()
        [[1, 1, 1], [1, 0, 0], [0, 0, 0]]

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv 1601.06759, figure 2.
    """
    if size < 1 or size % 2 == 0:
        raise InputError(f"`size` must be odd and positive. Received: size={size}.")
    if mask_type not in get_args(MaskType):
        raise InputError(f"`mask_type` must be 'A' or 'B'. Received: mask_type={mask_type!r}.")
    is_before = np.arange(size * size) < size * size // 2 + (mask_type == "B")
    return is_before.reshape(size, size).astype("float32")


def stack_mask(stack: Stack, size: int, mask_type: MaskType) -> np.ndarray:
    """Return the mask of the vertical or the horizontal stack.

    The vertical stack reads the rows above, the horizontal one the row up to the centre. The
    vertical stack's centre row does not leak in any layer but the first, since each of its features
    already depends on the rows above alone.

    Args:
        stack: "vertical" or "horizontal".
        size: odd side of the square kernel.
        mask_type: "A" masks the centre, in the vertical stack its whole row; "B" does not.

    Returns:
        float32 array of shape (size // 2 + 1, size), ending with the centre's row, for the vertical
        stack; of shape (1, size // 2 + 1), ending with the centre, for the horizontal one.

    Raises:
        InputError: as `raster_mask`.

    Reference:
        van den Oord et al. 2016, arXiv 1606.05328, section 2.2 and figure 1.
    """
    mask, half = raster_mask(size, mask_type), size // 2
    if stack == "horizontal":
        return mask[half : half + 1, : half + 1]
    mask[half] = mask_type == "B"
    return mask[: half + 1]


def scan_order(grid_shape: tuple[int, int], scan: Scan) -> np.ndarray:
    """Return the order in which the codes of a grid are modelled.

    Args:
        grid_shape: (rows, cols) of the code grid.
        scan: "raster": row by row. "turned": column by column; the row index of a slice runs
            along the left-right axis of the head, so a row of this scan crosses the midline.

    Returns:
        int array of shape (scan rows, scan cols): the index in the flattened grid of each cell of
        the scan. `np.argsort` of its `ravel()` is the inverse order.

    Raises:
        InputError: if `scan` is unknown.

    Example:
        >>> scan_order((3, 2), "turned").tolist()
        [[0, 2, 4], [1, 3, 5]]
    """
    if scan not in SCANS:
        raise InputError(f"`scan` must be one of {', '.join(SCANS)}. Received: scan={scan!r}.")
    cells = np.arange(np.prod(grid_shape)).reshape(grid_shape)
    return cells if scan == "raster" else cells.T
