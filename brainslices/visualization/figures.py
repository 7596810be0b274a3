"""Figures of a run: what went in and came out, and how training went. One look for all."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path

__all__ = [
    "ReconstructionRow",
    "figure_panels",
    "growth_figure",
    "pick_extremes",
    "reconstruction_figure",
    "training_figure",
]

INK, BLUE, ORANGE = "#333333", "#1f5a94", "#d9822b"
STYLE = {
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
CELL_INCHES = 2.0
# Panel title -> the format of its values, and the history columns drawn in it.
PANELS = {
    "Reconstruction loss": (
        "{:.4g}",
        {"reconstruction_loss": "training", "val_reconstruction_loss": "validation"},
    ),
    "Validation SSIM": ("{:.3f}", {"val_ssim": "picture", "val_ssim_foreground": "foreground"}),
    "Perplexity": ("{:.0f}", {"perplexity": "training", "val_perplexity": "validation"}),
    "Codebook usage": (
        "{:.0%}",
        {"codebook_usage": "training", "val_codebook_usage": "validation"},
    ),
    "Nats per code": (
        "{:.3f}",
        {"nats_per_code": "training", "val_nats_per_code": "validation"},
    ),
    "Learning rate": ("{:.2g}", {"learning_rate": "training"}),
}


@dataclass(frozen=True)
class ReconstructionRow:
    """One slice of a reconstruction figure, cut to the model's crop so the code grid lies over it.

    Args:
        label: Why it is shown: "best", "median", "worst".
        slice_id: Which slice it is.
        original: Floating array of shape (rows, cols), intensities in [0, 1].
        codes: Integer array of shape (code rows, code cols).
        reconstruction: Floating array of shape (rows, cols), intensities in [0, 1].
        similarity: Floating array of shape (rows, cols), the SSIM map.
        ssim: Its reported mean.
        ssim_foreground: Its reported mean over the foreground.
    """

    label: str
    slice_id: str
    original: np.ndarray
    codes: np.ndarray
    reconstruction: np.ndarray
    similarity: np.ndarray
    ssim: float
    ssim_foreground: float


def pick_extremes(scores: np.ndarray, count: int = 2) -> list[tuple[str, int]]:
    """The slices a figure must show: the best, the median and the worst, not picked ones.

    Args:
        scores: Float array of shape (slices,), more is better; those that are not a number are
            passed over.
        count: How many of each kind, fewer when there are not enough slices.

    Returns:
        (label, row number) from the best to the worst, no row twice.
    """
    ranked = np.argsort(-np.asarray(scores, "float64"), kind="stable")
    ranked = ranked[: np.count_nonzero(~np.isnan(scores))]
    count = min(count, max(1, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    kinds = {
        "median": ranked[middle : middle + count],
        "worst": ranked[-count:],
        "best": ranked[:count],
    }
    labels = {int(row): label for label, rows in kinds.items() for row in rows}
    return [(labels[row], row) for row in ranked.tolist() if row in labels]


def reconstruction_figure(path: str | Path, rows: Sequence[ReconstructionRow]) -> None:
    """Draws slices beside their codes, reconstructions and similarity maps.

    Args:
        path: The PNG to write.
        rows: The slices, one a row of the figure.

    Raises:
        InputError: `rows` is empty.
    """
    if not rows:
        raise InputError("`rows` must hold at least one slice to draw. Received: none.")
    titles = ("Original", "Code grid", "Reconstruction", "SSIM map")
    with matplotlib.rc_context(STYLE):
        rows_of_picture, cols_of_picture = rows[0].original.shape
        height = CELL_INCHES * rows_of_picture / cols_of_picture + 0.2
        figure = Figure(
            figsize=(CELL_INCHES * len(titles) + 1.0, height * len(rows) + 0.3),
            layout="constrained",
        )
        panels = figure.subplots(len(rows), len(titles), squeeze=False)
        last_code = max(int(row.codes.max()) for row in rows)
        for row, places in zip(rows, panels, strict=True):
            similarity = _draw_row(places, row, last_code)
        for place, title in zip(panels[0], titles, strict=True):
            place.set_title(title)
        bar = figure.colorbar(similarity, ax=panels, shrink=min(0.9, 2 / len(rows)), aspect=30)
        bar.set_label("SSIM")
        bar.outline.set_visible(False)
        _save(figure, path)


def training_figure(path: str | Path, history: Mapping[str, Sequence[float]]) -> None:
    """Draws the curves of a training run, each with its last value.

    Args:
        path: The PNG to write.
        history: A list of one value an epoch for each column, not a number where an epoch has
            none. Drawn are those of `PANELS` that are there: reconstruction loss, SSIM, perplexity,
            codebook usage, nats per code, learning rate.

    Raises:
        InputError: None of the columns is there with a finite value.
    """
    history = {name: np.asarray(values, "float64") for name, values in history.items()}
    known = {name for name, values in history.items() if np.isfinite(values).any()}
    drawn = {
        title: {label: history[name] for name, label in columns.items() if name in known}
        for title, (_, columns) in PANELS.items()
    }
    drawn = {title: curves for title, curves in drawn.items() if curves}
    if not drawn:
        wanted = ", ".join(name for _, columns in PANELS.values() for name in columns)
        raise InputError(
            f"`history` must hold numbers in one of: {wanted}. "
            f"Received: {', '.join(history) or 'none'}."
        )
    across = min(len(drawn), 3 if len(drawn) > 4 else 2)
    down = math.ceil(len(drawn) / across)
    with figure_panels(path, down, across) as panels:
        for panel, (title, curves) in zip(panels, drawn.items(), strict=False):
            _draw_curves(panel, title, curves)
        for panel in panels[len(drawn) :]:
            panel.remove()


@contextlib.contextmanager
def figure_panels(
    path: str | Path, down: int, across: int, inches: tuple[float, float] = (3.9, 2.7)
) -> Iterator[np.ndarray]:
    """Yields the empty panels of a figure in the project's look, and saves what was drawn.

    Args:
        path: The PNG to write.
        down, across: Number of panels.
        inches: Width and height of each.

    Yields:
        Array of matplotlib axes, of shape (down * across,).
    """
    with matplotlib.rc_context(STYLE):
        size = (inches[0] * across, inches[1] * down)
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(down, across, squeeze=False).ravel()
        _save(figure, path)


def growth_figure(
    path: str | Path, curves: Mapping[str, tuple[str, Sequence[float], Sequence[float]]], unit: str
) -> None:
    """Draws what something costs as what it works on grows: a straight line is in proportion.

    Args:
        path: The PNG to write.
        curves: What is measured -> what grows, its sizes, and as many figures.
        unit: Of the figures.
    """
    with figure_panels(path, 1, len(curves), (3.6, 2.9)) as panels:
        for panel, (name, (grows, sizes, figures)) in zip(panels, curves.items(), strict=True):
            panel.plot(sizes, figures, "o-", color=BLUE, markersize=4)
            panel.set_title(name)
            panel.set_xlim(left=0)
            panel.set_ylim(0, 1.1 * max(figures))
            panel.set_xlabel(grows)
            panel.set_ylabel(unit)


def _draw_row(places, row, last_code):
    original, codes, reconstruction, similarity = places
    original.imshow(row.original, cmap="gray", vmin=0, vmax=1)
    rows, cols = row.original.shape
    # Stretched over the picture: the grid's own sides are rounded to whole codes.
    codes.imshow(row.codes, cmap="viridis", vmin=0, vmax=last_code, extent=(0, cols, rows, 0))
    reconstruction.imshow(row.reconstruction, cmap="gray", vmin=0, vmax=1)
    drawn = similarity.imshow(row.similarity, cmap="magma", vmin=0, vmax=1)
    original.set_ylabel(row.label, fontweight="bold")
    original.set_xlabel(row.slice_id)
    codes.set_xlabel(f"{row.codes.shape[0]} x {row.codes.shape[1]} codes")
    similarity.set_xlabel(f"SSIM {row.ssim:.3f}, foreground {row.ssim_foreground:.3f}")
    for place in places:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    return drawn


def _draw_curves(panel, title, curves):
    written = PANELS[title][0]
    highest = max(map(len, curves.values()))
    for (label, values), colour in zip(curves.items(), (BLUE, ORANGE), strict=False):
        (there,) = np.nonzero(np.isfinite(values))
        panel.plot(
            there + 1,
            values[there],
            color=colour,
            marker="o" if highest < 10 else None,
            markersize=4,
            label=f"{label} {written.format(values[there[-1]])}",
        )
    panel.set_title(title, loc="left")
    panel.set_xlabel("epoch")
    panel.set_xlim(1 - 0.03 * highest, highest + 0.03 * highest)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if title == "Reconstruction loss":
        _spread_small_values(panel, np.concatenate(list(curves.values())))
    elif title not in ("Validation SSIM", "Nats per code"):
        panel.set_ylim(bottom=0)
    if title == "Codebook usage":
        panel.set_ylim(top=1.03)
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    falling = title in ("Reconstruction loss", "Nats per code", "Learning rate")
    panel.legend(loc="upper right" if falling else "lower right")


def _spread_small_values(panel, values):
    """Logarithmic where the first epochs would press the others flat."""
    if np.nanmin(values) > 0 and np.nanmax(values) > 3 * np.nanmin(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.yaxis.set_minor_locator(NullLocator())


def _save(figure, path):
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
