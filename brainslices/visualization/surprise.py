"""Figure of slices with their surprise maps laid over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from brainslices.errors import InputError
from brainslices.types import PathLike
from brainslices.visualization.figures import PANEL_INCHES, STYLE, save_figure

__all__ = ["SurpriseRow", "surprise_figure"]

# Maps are opaque from this share of the colour scale on, so that the slice is seen where they are
# low.
OPAQUE_FROM = 0.5
OPTIONAL_MAPS = {"prediction": "standard deviations", "restoration": "difference in intensity"}


@dataclass(frozen=True)
class SurpriseRow:
    """One slice of the figure, cut to the model's crop.

    Images are floating arrays of shape (rows, cols).
    """

    label: str  # why it was chosen: "most", "median", "least"
    slice_id: str
    original: np.ndarray  # in [0, 1]
    surprise: np.ndarray  # nats
    bits: float
    percentile: float
    prediction: np.ndarray | None = None  # difference to the prediction, standard deviations
    restoration: np.ndarray | None = None  # mean difference to the restored images


def surprise_figure(path: PathLike, rows: Sequence[SurpriseRow]) -> None:
    """Draw slices beside their surprise maps and, where there are any, the other maps.

    Args:
        path: The PNG to write.
        rows: The slices, one a row of the figure.

    Raises:
        InputError: If `rows` is empty.
    """
    if not rows:
        raise InputError("`rows` must hold at least one slice to draw. Received: none.")
    maps = {"Surprise": ("nats above validation", [row.surprise for row in rows])}
    for name, unit in OPTIONAL_MAPS.items():
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if values:
            maps[name.capitalize()] = (unit, values)
    image_rows, image_cols = rows[0].original.shape
    width = PANEL_INCHES * (1 + len(maps)) + 0.8 * len(maps) + 0.4
    height = (PANEL_INCHES * image_rows / image_cols + 0.25) * len(rows) + 0.3
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(rows), 1 + len(maps), squeeze=False)
        _draw_originals(panels[:, 0], rows)
        for column, (title, (unit, values)) in zip(panels.T[1:], maps.items(), strict=True):
            drawn = _draw_overlays(column, rows, values)
            column[0].set_title(title)
            shrink = min(0.9, 2 / len(rows))
            colorbar = figure.colorbar(drawn, ax=column, shrink=shrink, aspect=30)
            colorbar.set_label(unit)
            colorbar.outline.set_visible(False)
        for panel in panels.flat:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        save_figure(figure, path)


def _draw_originals(panels, rows):
    panels[0].set_title("Original")
    for panel, row in zip(panels, rows, strict=True):
        panel.imshow(row.original, cmap="gray", vmin=0, vmax=1)
        panel.set_ylabel(row.label, fontweight="bold")
        panel.set_xlabel(row.slice_id, parse_math=False)


def _draw_overlays(panels, rows, maps):
    """Draw one map over each slice, all on one scale from 0; return the last one's image."""
    highest = max(float(np.max(values)) for values in maps) or 1.0
    for panel, row, values in zip(panels, rows, maps, strict=True):
        opacity = np.clip(values / (OPAQUE_FROM * highest), 0, 1)
        panel.imshow(row.original, cmap="gray", vmin=0, vmax=1)
        panel.imshow(values, cmap="inferno", vmin=0, vmax=highest, alpha=opacity)
        panel.set_xlabel(f"{row.bits:.0f} bits, percentile {row.percentile:.0f}")
    # A colour bar of an image with opacities would be transparent too.
    return matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(0, highest), matplotlib.colormaps["inferno"]
    )
