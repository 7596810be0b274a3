"""Contact sheets: many slices in one image, each with a label."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainslices.errors import InputError
from brainslices.types import PathLike
from brainslices.visualization.figures import save_figure

__all__ = ["contact_sheet"]

BACKGROUND, COLOURS = "#1b1d20", ("#e4e4e4", "#e5a769")  # labels of images, of nearest slices
SHEET_WIDTH, MIN_WIDTH, MAX_WIDTH, SEAM = 1920, 112, 384, 2  # pixels
MIN_FONT, LINE_SPACING = 6, 1.25
# At 72 dots per inch a point is a pixel: font sizes and figure sizes are both in pixels.
DPI = 72
# Catmull-Rom is the bicubic filter of image editors; matplotlib's "bicubic" blurs.
IMAGE_STYLE: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "catrom"}


def contact_sheet(
    path: PathLike,
    images: np.ndarray,
    labels: Sequence[str],
    nearest: Sequence[tuple[np.ndarray, str]] | None = None,
    columns: int | None = None,
) -> None:
    """Draw slices on a dark sheet, each with a label and optionally beside its nearest slice.

    Images are 112 to 384 pixels wide, the smaller the more there are; then the sheet grows.

    Args:
        path: the PNG to write.
        images: floating array of shape (n, rows, cols), intensities in [0, 1].
        labels: the text under each, of one or more lines: "position 0.52".
        nearest: for each image the one to draw at its right, of the same shape, and its label:
            "nearest in training, SSIM 0.871".
        columns: number of images, or pairs of them, in a row; None makes the sheet about square.

    Raises:
        InputError: if there is no image, a label or a neighbour is missing, the shapes differ or
            `columns` is below 1.
    """
    _check_sheet(images, labels, nearest, columns)
    groups = [list(zip(images, labels, strict=True))] + ([list(nearest)] if nearest else [])
    columns = min(columns or math.ceil(math.sqrt(len(images) / len(groups))), len(images))
    width = min(max(SHEET_WIDTH // (columns * len(groups)), MIN_WIDTH), MAX_WIDTH)
    height = round(width * images.shape[1] / images.shape[2])
    gap, font = max(8, width // 14), min(max(width // 14, 10), 16)
    lines = 1 + max(label.count("\n") for group in groups for _, label in group)
    across = len(groups) * (width + SEAM) + gap
    down = height + math.ceil(LINE_SPACING * font * (lines + 0.5)) + gap
    size = columns * across + gap, math.ceil(len(images) / columns) * down + gap
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": font}):
        figure, axes = _empty_sheet(size)
        for offset, group, colour in zip((0, width + SEAM), groups, COLOURS, strict=False):
            for index, (image, label) in enumerate(group):
                left = gap + index % columns * across + offset
                top = gap + index // columns * down
                extent = (left, left + width, top + height, top)
                axes.imshow(image, extent=extent, aspect="auto", **IMAGE_STYLE)
                place = left + width / 2, top + height + LINE_SPACING * font / 4
                axes.text(*place, label, color=colour, ha="center", va="top", parse_math=False)
        _fit_texts(figure, axes.texts, width)
        save_figure(figure, path, dpi=DPI)


def _check_sheet(images, labels, nearest, columns):
    neighbours = labels if nearest is None else nearest
    if not len(images) == len(labels) == len(neighbours) or len(images) == 0:
        raise InputError(
            "`images` must hold at least one image, with an entry each in `labels` and, if given, "
            f"in `nearest`. Received: {len(images)} images, {len(labels)} labels, "
            f"{len(neighbours) if nearest is not None else 'no'} nearest slices."
        )
    if columns is not None and columns < 1:
        raise InputError(f"`columns` must be at least 1. Received: columns={columns}.")
    shapes = {np.shape(image) for image in [*images, *(image for image, _ in nearest or ())]}
    if len(shapes) > 1:
        raise InputError(
            f"`images` and `nearest` must have the same shape. Received: {sorted(shapes)}."
        )


def _empty_sheet(size):
    """A figure of so many pixels (width, height), and axes with these as coordinates."""
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _fit_texts(figure, texts, width):
    """Set all texts in one size at which the widest fits."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    widest = max(text.get_window_extent(renderer).width for text in texts)
    for text in texts:
        size = text.get_fontsize() * min(width / widest, 1)
        text.set(fontsize=max(size, MIN_FONT), linespacing=LINE_SPACING)
