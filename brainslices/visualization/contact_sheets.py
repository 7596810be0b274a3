"""Contact sheets: many slices in one image, each with a label."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path

__all__ = ["contact_sheet"]
SHEET_COLOURS = {"sheet": "#1b1d20", "label": "#e4e4e4", "nearest": "#e5a769"}
SHEET_PIXELS, SMALLEST_PIXELS, LARGEST_PIXELS, SEAM_PIXELS = 1920, 112, 384, 2
LINE_SPACING = 1.25


def contact_sheet(
    path: str | Path,
    images: np.ndarray,
    labels: Sequence[str],
    nearest: Sequence[tuple[np.ndarray, str]] | None = None,
    columns: int | None = None,
) -> None:
    """Draws slices on one dark sheet, each with a label, perhaps each beside its nearest slice.

    Pictures are drawn 112 to 384 pixels wide, the smaller the more there are; the sheet grows when
    they would get smaller still.

    Args:
        path: The PNG to write.
        images: Floating array of shape (n, rows, cols), intensities in [0, 1].
        labels: What stands under each, of one or more lines: "position 0.52".
        nearest: For each picture the one to show at its right, floating of the same shape, and
            that one's label: "nearest in training, SSIM 0.871".
        columns: Pictures, or pairs of them, in a row; None makes the sheet about square.

    Raises:
        InputError: There is no picture, a label or a neighbour is missing, the shapes differ or
            `columns` is below 1.
    """
    groups = _sheet_groups(images, labels, nearest, columns)
    each, shown = len(groups[0]), [label for group in groups for _, label in group]
    columns = min(columns or math.ceil(math.sqrt(len(groups) / each)), len(groups))
    width = min(max(SHEET_PIXELS // (columns * each), SMALLEST_PIXELS), LARGEST_PIXELS)
    height = round(width * images.shape[1] / images.shape[2])
    font, gap = _label_font(shown, width), max(8, width // 14)
    lines = 1 + max(label.count("\n") for label in shown)
    across = each * (width + SEAM_PIXELS) + gap
    down = height + math.ceil(LINE_SPACING * font.size * (lines + 0.5)) + gap
    size = (columns * across + gap, math.ceil(len(groups) / columns) * down + gap)
    sheet = Image.new("RGB", size, SHEET_COLOURS["sheet"])
    for number, group in enumerate(groups):
        corner = (gap + number % columns * across, gap + number // columns * down)
        _draw_group(sheet, group, corner, (width, height), font)
    with atomic_path(Path(path)) as temporary:
        sheet.save(temporary, format="PNG")


def _sheet_groups(images, labels, nearest, columns):
    """For each picture the list of (picture, label) that are drawn side by side."""
    neighbours = labels if nearest is None else nearest
    if not len(images) == len(labels) == len(neighbours) or len(images) == 0:
        raise InputError(
            "A contact sheet wants at least one picture, with a label each and perhaps a nearest "
            f"slice each. Received: {len(images)} pictures, {len(labels)} labels, "
            f"{len(neighbours) if nearest is not None else 'no'} nearest slices."
        )
    if columns is not None and columns < 1:
        raise InputError(f"`columns` must be at least 1. Received: columns={columns}.")
    if nearest is None:
        return [[pair] for pair in zip(images, labels, strict=True)]
    shapes = {np.shape(image) for image in [*images, *(image for image, _ in nearest)]}
    if len(shapes) > 1:
        raise InputError(
            f"Samples and their nearest slices must have one shape. Received: {sorted(shapes)}."
        )
    return [
        [(image, label), near] for image, label, near in zip(images, labels, nearest, strict=True)
    ]


def _draw_group(sheet, group, corner, size, font):
    """A picture and perhaps its neighbour, side by side, with their labels below."""
    pen, (left, top), (width, height) = ImageDraw.Draw(sheet), corner, size
    for (image, label), ink in zip(group, ("label", "nearest"), strict=False):
        levels = np.rint(np.clip(image, 0, 1) * 255).astype("uint8")
        sheet.paste(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC), (left, top))
        for line, text in enumerate(label.split("\n")):
            place = (left + width / 2, top + height + LINE_SPACING * font.size * (line + 0.25))
            pen.text(place, text, SHEET_COLOURS[ink], font, anchor="ma")
        left += width + SEAM_PIXELS


def _label_font(labels, width):
    """DejaVu Sans, Matplotlib's own, as large as the longest line allows."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(path, min(max(width // 14, 10), 16))
    longest = max(font.getlength(line) for label in labels for line in label.split("\n"))
    return font if longest <= width else font.font_variant(size=max(font.size * width / longest, 6))
