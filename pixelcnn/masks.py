"""Which neighbours a convolution may see, and the order in which a grid is gone through.

Pure NumPy. A mask covers the box of a square kernel that a stack can see at all: the vertical
stack's ends at the row of the centre, the horizontal stack's at the centre itself.
"""

from typing import Literal, get_args

import numpy as np

from brainslices.errors import InputError

__all__ = [
    "SCANS",
    "MaskType",
    "Scan",
    "horizontal_mask",
    "raster_mask",
    "scan_order",
    "vertical_mask",
]

MaskType = Literal["A", "B"]
Scan = Literal["raster", "turned", "folded"]
SCANS = get_args(Scan)


def raster_mask(size: int, mask_type: MaskType) -> np.ndarray:
    """Mask of a whole square kernel: what comes before its centre in raster order.

    Args:
        size: odd side of the kernel.
        mask_type: "A" hides the centre, "B" shows it.

    Returns:
        float32 array of shape (size, size), ones where the kernel may look.

    Raises:
        InputError: if the size is even or not positive, or the type unknown.

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv 1601.06759, figure 2.
    """
    _check(size, mask_type)
    before = np.arange(size * size) < size * size // 2 + (mask_type == "B")
    return before.reshape(size, size).astype("float32")


def vertical_mask(size: int, mask_type: MaskType) -> np.ndarray:
    """Mask of the vertical stack: the rows above, and with type "B" the row of the centre.

    That row is safe in all layers but the first, since each of its features already depends on the
    rows above alone.

    Args:
        size: odd side of the square kernel.
        mask_type: "A" hides the row of the centre, "B" shows it.

    Returns:
        float32 array of shape (size // 2 + 1, size), whose last row is the centre's.

    Raises:
        InputError: as `raster_mask`.

    Reference:
        van den Oord et al. 2016, arXiv 1606.05328, section 2.2 and figure 1.
    """
    _check(size, mask_type)
    mask = np.ones((size // 2 + 1, size), "float32")
    mask[-1] = mask_type == "B"
    return mask


def horizontal_mask(size: int, mask_type: MaskType) -> np.ndarray:
    """Mask of the horizontal stack: what lies left in the row, and with type "B" the centre.

    Args:
        size: odd side of the square kernel.
        mask_type: "A" hides the centre, "B" shows it.

    Returns:
        float32 array of shape (1, size // 2 + 1), whose last entry is the centre.

    Raises:
        InputError: as `raster_mask`.
    """
    return raster_mask(size, mask_type)[size // 2 : size // 2 + 1, : size // 2 + 1]


def scan_order(grid_shape: tuple[int, int], scan: Scan) -> np.ndarray:
    """The order in which a code grid is gone through.

    Args:
        grid_shape: (rows, cols) of the code grid.
        scan: "raster": row by row. "turned": column by column, so that a row of the scan crosses
            the head from one side to the other where the rows of the slices run along it.
            "folded": turned, and each row of the scan goes from both ends inwards, one code here
            and one there, so that mirror halves are neighbours.

    Returns:
        int array of shape (scan rows, scan cols): where in the flattened grid each code of the
        scan lies. `np.argsort` of its `ravel()` is the way back.

    Raises:
        InputError: if the scan is unknown.
    """
    if scan not in SCANS:
        raise InputError(f"`scan` must be one of {', '.join(SCANS)}. Received: scan={scan!r}.")
    cells = np.arange(np.prod(grid_shape)).reshape(grid_shape)
    if scan == "raster":
        return cells
    if scan == "turned":
        return cells.T
    inwards = np.stack([np.arange(grid_shape[0]), np.arange(grid_shape[0])[::-1]], axis=1)
    return cells.T[:, inwards.ravel()[: grid_shape[0]]]


def _check(size, mask_type):
    if size < 1 or size % 2 == 0:
        raise InputError(f"`size` must be odd and positive. Received: size={size}.")
    if mask_type not in get_args(MaskType):
        raise InputError(f"`mask_type` must be 'A' or 'B'. Received: mask_type={mask_type!r}.")
