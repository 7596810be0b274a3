"""Figure of slices with their surprise maps laid over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

from brainslices.types import PathLike
from brainslices.visualization.figures import add_colorbar, slice_panels

__all__ = ["COLORMAP", "SurpriseRow", "map_opacity", "surprise_figure"]

COLORMAP = "inferno"
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
    """Draw slices with their surprise maps and, where there are any, the other maps.

    Args:
        path: the PNG to write.
        rows: the slices, one per row of the figure.

    Raises:
        InputError: if `rows` is empty.
    """
    maps = {"Surprise": ("nats above validation", [row.surprise for row in rows])}
    for name, unit in OPTIONAL_MAPS.items():
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if values:
            maps[name.capitalize()] = (unit, values)
    with slice_panels(path, rows, list(maps), 0.8 * len(maps) + 0.4) as panels:
        for column, (unit, values) in zip(panels.T[1:], maps.values(), strict=True):
            add_colorbar(column, _draw_overlays(column, rows, values), unit)


def map_opacity(values: np.ndarray, highest: float) -> np.ndarray:
    """Return the opacity of a map over its slice: 0 at 0 and below, 1 from half of `highest` on."""
    return np.clip(values / (OPAQUE_FROM * highest), 0, 1)


def _draw_overlays(panels, rows, maps):
    """Draw one map over each slice, all on one scale from 0; return the scale and its colours."""
    highest = max(float(np.max(values)) for values in maps) or 1.0
    for panel, row, values in zip(panels, rows, maps, strict=True):
        opacity = map_opacity(values, highest)
        panel.imshow(row.original, cmap="gray", vmin=0, vmax=1)
        panel.imshow(values, cmap=COLORMAP, vmin=0, vmax=highest, alpha=opacity)
        panel.set_xlabel(f"{row.bits:.0f} bits, percentile {row.percentile:.0f}")
    # A colour bar of an image with opacities would be transparent too.
    return matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(0, highest), matplotlib.colormaps[COLORMAP]
    )
