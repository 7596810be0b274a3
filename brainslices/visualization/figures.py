"""Figures in one style: slices with their reconstructions, training curves, growth of costs."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.types import PathLike

__all__ = [
    "ReconstructionRow",
    "add_colorbar",
    "figure_panels",
    "growth_figure",
    "pick_extremes",
    "reconstruction_figure",
    "save_figure",
    "slice_panels",
    "training_figure",
]

INK, BLUE, ORANGE, GREY = "#333333", "#1f5a94", "#d9822b", "#b5b5b5"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "image.interpolation": "nearest",
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
}
PANEL_INCHES = 2.0
MAX_EXTREMES = 2
SPLITS = ("training", "validation")
# Panel title -> the format of its values, its history columns, and their labels.
PANELS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Reconstruction loss": ("{:.4g}", ("reconstruction_loss", "val_reconstruction_loss"), SPLITS),
    "Validation SSIM": ("{:.3f}", ("val_ssim", "val_ssim_foreground"), ("image", "foreground")),
    "Perplexity": ("{:.0f}", ("perplexity", "val_perplexity"), SPLITS),
    "Codebook usage": ("{:.0%}", ("codebook_usage", "val_codebook_usage"), SPLITS),
    "Nats per code": ("{:.3f}", ("nats_per_code", "val_nats_per_code"), SPLITS),
    "Learning rate": ("{:.2g}", ("learning_rate",), ("training",)),
}


@dataclass(frozen=True)
class ReconstructionRow:
    """One slice of a reconstruction figure, cut to the model's crop so the code grid lies over it.

    Images are floating arrays of shape (rows, cols), intensities in [0, 1].
    """

    label: str  # why it was chosen: "best", "median", "worst"
    slice_id: str
    original: np.ndarray
    codes: np.ndarray  # integers of shape (code rows, code cols)
    reconstruction: np.ndarray
    similarity: np.ndarray  # the SSIM map, of the images' shape
    ssim: float  # its reported mean, and that over the foreground
    ssim_foreground: float


def pick_extremes(scores: np.ndarray) -> list[tuple[str, int]]:
    """Choose the best, the median and the worst slices, at most two of each, by their scores.

    Args:
        scores: float array of shape (slices,), more is better; NaN is skipped.

    Returns:
        (label, row number) from the best to the worst, no row twice.

    Example:
        >>> pick_extremes(np.array([0.2, 0.9, np.nan, 0.5]))
        [('best', 1), ('median', 3), ('worst', 0)]
    """
    ranked = np.argsort(-np.asarray(scores, "float64"), kind="stable")
    ranked = ranked[: np.count_nonzero(~np.isnan(scores))]
    count = min(MAX_EXTREMES, max(1, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    # Of few slices one may be in two groups: the later group wins.
    groups = {
        "median": ranked[middle : middle + count],
        "worst": ranked[-count:],
        "best": ranked[:count],
    }
    labels = {int(row): label for label, rows in groups.items() for row in rows}
    return [(labels[row], row) for row in ranked.tolist() if row in labels]


def reconstruction_figure(path: PathLike, rows: Sequence[ReconstructionRow]) -> None:
    """Draw slices with their code grids, reconstructions and SSIM maps.

    Args:
        path: the PNG to write.
        rows: the slices, one per row of the figure.

    Raises:
        InputError: if `rows` is empty.
    """
    with slice_panels(path, rows, ("Code grid", "Reconstruction", "SSIM map"), 1.0) as panels:
        last_code = max(int(row.codes.max()) for row in rows)
        for row_panels, row in zip(panels, rows, strict=True):
            similarity = _draw_reconstruction(row_panels, row, last_code)
        add_colorbar(panels, similarity, "SSIM")


@contextlib.contextmanager
def slice_panels(
    path: PathLike, rows: Sequence[Any], titles: Sequence[str], bar_inches: float
) -> Iterator[np.ndarray]:
    """Yield the panels of a figure with one row per slice, then save it.

    The first panel of each row shows the original; the others are empty.

    Args:
        path: the PNG to write.
        rows: objects with `label`, `slice_id` and `original`, float of shape (rows, cols) in
            [0, 1]; all of one shape.
        titles: titles of the other columns of panels.
        bar_inches: width of all colour bars.

    Yields:
        Array of matplotlib axes, of shape (len(rows), 1 + len(titles)).

    Raises:
        InputError: if `rows` is empty.
    """
    if not rows:
        raise InputError("`rows` must hold at least one slice to draw. Received: none.")
    image_rows, image_cols = rows[0].original.shape
    width = PANEL_INCHES * (1 + len(titles)) + bar_inches
    height = (PANEL_INCHES * image_rows / image_cols + 0.25) * len(rows) + 0.3
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(rows), 1 + len(titles), squeeze=False)
        for panel, title in zip(panels[0], ("Original", *titles), strict=True):
            panel.set_title(title)
        for panel, row in zip(panels[:, 0], rows, strict=True):
            panel.imshow(row.original, cmap="gray", vmin=0, vmax=1)
            panel.set_ylabel(row.label, fontweight="bold")
            panel.set_xlabel(row.slice_id, parse_math=False)
        for panel in panels.flat:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        yield panels
        save_figure(figure, path)


def add_colorbar(panels: np.ndarray, drawn: ScalarMappable, label: str) -> None:
    """Add a colour bar to the right of panels.

    Args:
        panels: array of matplotlib axes, whose first axis is the rows of the figure.
        drawn: what is drawn in the colours of the bar.
        label: unit of the bar.
    """
    shrink = min(0.9, 2 / len(panels))
    colorbar = panels.flat[0].figure.colorbar(drawn, ax=panels, shrink=shrink, aspect=30)
    colorbar.set_label(label)
    colorbar.outline.set_visible(False)


def training_figure(path: PathLike, history: Mapping[str, Sequence[float]]) -> None:
    """Draw the curves of a training run, each with its last value.

    Args:
        path: the PNG to write.
        history: column name -> one value per epoch, NaN where an epoch has none. The columns of
            `PANELS` are drawn, as far as present.

    Raises:
        InputError: if none of these columns has a finite value.
    """
    columns = {name: np.asarray(values, "float64") for name, values in history.items()}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    titles = [title for title, (_, names, _) in PANELS.items() if columns.keys() & set(names)]
    if not titles:
        expected = ", ".join(name for _, names, _ in PANELS.values() for name in names)
        raise InputError(
            f"`history` must hold a finite value in one of: {expected}. "
            f"Received: {', '.join(history) or 'none'}."
        )
    across = min(len(titles), 3 if len(titles) > 4 else 2)
    with figure_panels(path, math.ceil(len(titles) / across), across) as panels:
        for panel, title in zip(panels, titles, strict=False):
            _draw_curves(panel, title, columns)
        for panel in panels[len(titles) :]:
            panel.remove()


@contextlib.contextmanager
def figure_panels(
    path: PathLike, down: int, across: int, inches: tuple[float, float] = (3.9, 2.7)
) -> Iterator[np.ndarray]:
    """Yield the empty panels of a figure in the project's style, then save it.

    Args:
        path: the PNG to write.
        down: number of rows of panels.
        across: number of panels in a row.
        inches: width and height of each.

    Yields:
        Array of matplotlib axes, of shape (down * across,).
    """
    with matplotlib.rc_context(STYLE):
        size = (inches[0] * across, inches[1] * down)
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(down, across, squeeze=False).ravel()
        save_figure(figure, path)


def growth_figure(
    path: PathLike, curves: Mapping[str, tuple[str, Sequence[float], Sequence[float]]], unit: str
) -> None:
    """Draw cost against problem size; a straight line is proportional growth.

    Args:
        path: the PNG to write.
        curves: title -> label of the size, the sizes, and the cost at each.
        unit: unit of the costs.
    """
    with figure_panels(path, 1, len(curves), (3.6, 2.9)) as panels:
        for panel, (title, (size_label, sizes, costs)) in zip(panels, curves.items(), strict=True):
            panel.plot(sizes, costs, "o-", color=BLUE, markersize=4)
            panel.set(title=title, xlabel=size_label, ylabel=unit, ylim=(0, 1.1 * max(costs)))
            panel.set_xlim(left=0)


def save_figure(figure: Figure, path: PathLike, **options: Any) -> None:
    """Write a figure as a PNG; on an error an earlier file stays as it was.

    Args:
        figure: the figure.
        path: the PNG to write; its folder is made if missing.
        **options: further arguments of `Figure.savefig`.
    """
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", **options)


def _draw_reconstruction(panels, row, last_code):
    _, codes, reconstruction, similarity = panels
    rows, cols = row.original.shape
    # Stretched over the image: the grid's own sides are rounded to whole codes.
    codes.imshow(row.codes, cmap="viridis", vmin=0, vmax=last_code, extent=(0, cols, rows, 0))
    reconstruction.imshow(row.reconstruction, cmap="gray", vmin=0, vmax=1)
    similarity_image = similarity.imshow(row.similarity, cmap="magma", vmin=0, vmax=1)
    codes.set_xlabel(f"{row.codes.shape[0]} x {row.codes.shape[1]} codes")
    similarity.set_xlabel(f"SSIM {row.ssim:.3f}, foreground {row.ssim_foreground:.3f}")
    return similarity_image


def _draw_curves(panel, title, columns):
    number_format, names, labels = PANELS[title]
    epochs = max(len(columns[name]) for name in names if name in columns)
    for name, label, colour in zip(names, labels, (BLUE, ORANGE), strict=False):
        if name not in columns:
            continue
        values = columns[name]
        (scored,) = np.nonzero(np.isfinite(values))
        panel.plot(
            scored + 1,
            values[scored],
            color=colour,
            marker="o" if epochs < 10 else None,
            markersize=4,
            label=f"{label} {number_format.format(values[scored[-1]])}",
        )
    panel.set_title(title, loc="left")
    panel.set_xlabel("epoch")
    panel.set_xlim(1 - 0.03 * epochs, epochs + 0.03 * epochs)
    panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if title == "Reconstruction loss":
        _use_log_scale(panel, [columns[name] for name in names if name in columns])
    elif title not in ("Validation SSIM", "Nats per code"):
        panel.update_datalim([(1, 0)])  # so that the margin is a share of the whole height
        panel.autoscale_view()
        panel.set_ylim(bottom=0)
    if title == "Codebook usage":
        panel.set_ylim(top=1.03)
        panel.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    is_falling = title in ("Reconstruction loss", "Nats per code", "Learning rate")
    panel.legend(loc="upper right" if is_falling else "lower right")


def _use_log_scale(panel, curves):
    """Use a logarithmic axis where the first epochs would press the others flat."""
    values = np.concatenate(curves)
    if np.nanmin(values) > 0 and np.nanmax(values) > 3 * np.nanmin(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.yaxis.set_minor_locator(ticker.NullLocator())
