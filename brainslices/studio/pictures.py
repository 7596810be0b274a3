"""Pictures of the browser app, as Pillow images."""

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from brainslices.data.crop import CropBox
from brainslices.data.images import to_uint8
from brainslices.visualization.html import colour
from brainslices.visualization.surprise import COLORMAP, map_opacity

__all__ = [
    "cell_at",
    "code_grid",
    "grey",
    "hidden_mask",
    "overlay",
    "partial",
    "similarity",
]

COLUMN = 520  # pixels
CELL = 16  # pixels of a code's cell
PENDING = 0.16  # intensity where nothing is sampled yet


def grey(image: np.ndarray) -> Image.Image:
    """Convert float (rows, cols) in [0, 1] to an 8-bit image."""
    return Image.fromarray(to_uint8(image))


def similarity(values: np.ndarray) -> Image.Image:
    """Colour an SSIM map, float (rows, cols), and enlarge it: yellow is 1, dark blue 0 or less."""
    picture = Image.fromarray(colour(values, "viridis"))
    factor = max(1, round(COLUMN / picture.width))
    return picture.resize((picture.width * factor, picture.height * factor))


def code_grid(codes: np.ndarray, num_embeddings: int, selected: tuple[int, int]) -> Image.Image:
    """Draw a code grid, int (r, c), a coloured cell for each code, with one cell outlined."""
    cells = colour(codes / max(num_embeddings - 1, 1), "viridis")
    picture = Image.fromarray(cells).resize(
        (codes.shape[1] * CELL, codes.shape[0] * CELL), Image.Resampling.NEAREST
    )
    top, left = (index * CELL for index in selected)
    box = (left, top, left + CELL - 1, top + CELL - 1)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(box, outline="black", width=3)
    draw.rectangle(box, outline="white", width=1)
    return picture


def cell_at(x: float, y: float, grid_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the (row, col) of the cell at a pixel of `code_grid`.

    Example:
        >>> cell_at(17, 0, (4, 4)), cell_at(999, 40, (4, 4))
        ((0, 1), (2, 3))
    """
    rows, cols = grid_shape
    return min(int(y) // CELL, rows - 1), min(int(x) // CELL, cols - 1)


def partial(image: np.ndarray, is_sampled: np.ndarray, crop: CropBox) -> np.ndarray:
    """Hide the part of a decoded image whose codes are not sampled yet.

    Args:
        image: float array of shape (rows, cols), decoded with any codes in that part.
        is_sampled: bool array of shape (r, c).
        crop: the part of the image that the codes cover.

    Returns:
        float array of the shape of the crop.
    """
    rows, cols = (
        np.arange(side) * count // side
        for side, count in zip((crop.rows, crop.cols), is_sampled.shape, strict=True)
    )
    return np.where(is_sampled[np.ix_(rows, cols)], crop.cut(image[None])[0], PENDING)


def hidden_mask(layers: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return where a brush has painted.

    Args:
        layers: uint8 arrays of shape (rows, cols, 4), of which the last channel is opacity.
        shape: (rows, cols) of the image; layers of other sizes are resized.

    Returns:
        bool array of shape `shape`.
    """
    mask = np.zeros(shape, bool)
    for layer in layers:
        alpha = Image.fromarray(layer[..., 3])
        mask |= np.asarray(alpha.resize(shape[::-1], Image.Resampling.NEAREST)) > 127
    return mask


def overlay(image: np.ndarray, values: np.ndarray, highest: float) -> np.ndarray:
    """Lay a map over a slice, both float (rows, cols), the more opaque the higher.

    Args:
        image: the slice, in [0, 1].
        values: the map; at 0 and below it is transparent.
        highest: value at the end of the colour map.

    Returns:
        float array of shape (rows, cols, 3), in [0, 1].
    """
    opacity = map_opacity(values, highest)[..., np.newaxis]
    colours = matplotlib.colormaps[COLORMAP](np.clip(values / highest, 0, 1))[..., :3]
    return opacity * colours + (1 - opacity) * image[..., np.newaxis]
