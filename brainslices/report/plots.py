"""Figures of a report, as the data and the layout that plotly.js draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from brainslices.report.collect import (
    OBJECTIVES,
    Reconstruction,
    RunRecord,
    Search,
    is_of_training_archive,
)
from brainslices.visualization.figures import PANELS

__all__ = ["code_usage", "learning_curves", "parallel_coordinates", "rate_plane", "search_plane"]

Figure = dict[str, Any]
# The colours of Okabe and Ito that are readable on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LABELS = {
    "bits_per_pixel_prior": "bits per pixel under the prior",
    "bits_per_pixel_estimated": "bits per pixel, estimated",
    "bits_per_pixel_order_0": "bits per pixel, order-0 entropy",
    "val_ssim_foreground": "ssim_foreground, validation",
}


def _layout(title: str, x: str, y: str, **changes: Any) -> dict[str, Any]:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return {"title": {"text": title}, **axes, **changes}


def learning_curves(runs: Sequence[RunRecord]) -> list[Figure]:
    """Draw one figure per panel of `PANELS`; colours show runs, dashes columns.

    Several trained runs of one kind get one more, of their objective against minutes of training.
    """
    figures = []
    for title, (_, columns, labels) in PANELS.items():
        traces = [
            _curve(run, COLOURS[number % len(COLOURS)], column, label, len(runs) > 1)
            for number, run in enumerate(runs)
            for column, label in zip(columns, labels, strict=False)
            if np.isfinite(run.history.get(column, ())).any()
        ]
        if traces:
            layout = _layout(title, "epoch", "")
            values = np.array([y for trace in traces for y in trace["y"] if y is not None])
            if title == "Reconstruction loss" and values.min() > 0:
                layout["yaxis"]["type"] = "log"
            if len({trace["x"][-1] for trace in traces}) == 1 and traces[0]["x"][-1] < 10:
                layout["xaxis"]["dtick"] = 1
            figures.append({"data": traces, "layout": layout})
    return figures + [
        _against_minutes(timed, kind)
        for kind in OBJECTIVES
        if len(timed := [pair for pair in enumerate(runs) if _is_timed(pair[1], kind)]) > 1
    ]


def _is_timed(run, kind):
    return run.kind == kind and run.epochs and run.metrics.get("seconds")


def _against_minutes(numbered_runs, kind):
    """Draw the objective of trained runs against time; the epochs of a run take equally long."""
    column, label, _ = OBJECTIVES[kind]
    traces = []
    for number, run in numbered_runs:
        trace = _curve(run, COLOURS[number % len(COLOURS)], column, "validation", is_named=True)
        minutes = run.metrics["seconds"] / 60 / run.epochs
        trace["x"] = [epoch * minutes for epoch in trace["x"]]
        traces.append(trace | {"hovertemplate": "%{x:.1f} minutes: %{y:.4g}"})
    layout = _layout(f"Validation {label} for the time", "minutes of training", "")
    layout["xaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def _curve(run, colour, column, label, is_named):
    values = [float(value) if np.isfinite(value) else None for value in run.history[column]]
    is_dotted = label in ("training", "image")
    return {
        "x": [*range(1, len(values) + 1)],
        "y": values,
        "name": f"{run.name}, {label}" if is_named else label,
        "mode": "lines+markers" if len(values) < 10 else "lines",
        "line": {"color": colour, "dash": "dot" if is_dotted else "solid"},
        "hovertemplate": "epoch %{x}: %{y:.4g}",
    }


def code_usage(reconstructions: Sequence[Reconstruction]) -> Figure:
    """Draw how often each code is used, the most frequent first, and uniform usage."""
    traces: list[Figure] = []
    for number, item in enumerate(reconstructions):
        shares = np.sort(item.code_counts)[::-1] / max(item.code_counts.sum(), 1)
        uniform = np.full(len(shares), 1 / max(len(shares), 1))
        name = f"{item.name}, " if len(reconstructions) > 1 else ""
        colour, common = COLOURS[number % len(COLOURS)], {"x0": 1, "mode": "lines"}
        used = {"name": f"{name}share of the codes", "line": {"color": colour, "shape": "hvh"}}
        used |= {"y": shares.tolist(), "fill": "tozeroy", "hovertemplate": "rank %{x}: %{y:.3%}"}
        even = {"name": f"{name}uniform usage", "line": {"color": colour, "dash": "dot"}}
        even |= {"y": uniform.tolist(), "hoverinfo": "skip"}
        traces += [common | used, common | even]
    layout = _layout("Usage of the codebook", "codes, the most frequent first", "")
    layout["yaxis"] |= {"tickformat": ".1%", "rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def rate_plane(reconstructions: Sequence[Reconstruction], runs: Sequence[RunRecord]) -> Figure:
    """Draw ssim_foreground against rate: the models, the codecs and the mean training image."""
    points: dict[str, tuple[float, float]] = {}
    for item in reconstructions:
        points |= _rates(item, runs, f"{item.name}: " if len(reconstructions) > 1 else "")
    traces = [
        {
            "x": [rate],
            "y": [score],
            "name": name,
            "mode": "markers",
            "marker": {"size": 12, "color": COLOURS[number % len(COLOURS)], "symbol": number},
            "hovertemplate": f"{name}: %{{y:.3f}} at %{{x:.4f}} bits per pixel<extra></extra>",
        }
        for number, (name, (rate, score)) in enumerate(points.items())
    ]
    layout = _layout("Rate and distortion", "bits per pixel", "ssim_foreground")
    layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def _rates(reconstruction, runs, prefix):
    """Name of each point of a reconstruction -> its bits per pixel and its score."""
    metrics = reconstruction.metrics
    score = metrics["ssim_foreground"]
    points = {f"{prefix}codes, raw": (metrics["bits_per_pixel_raw"], score)}
    if "bits_per_pixel_prior" in metrics:  # of the codes that the reconstruction was made of
        points[f"{prefix}codes, under the prior"] = (metrics["bits_per_pixel_prior"], score)
    if "bits_per_pixel_prior" in metrics or metrics.get("sweeps"):
        runs = ()  # their rates are those of the nearest codes
    for run in runs:
        splits = run.metrics.get("splits", {})
        # The rate of a prior holds for the codes of its own VQ-VAE on the same split.
        same = run.config.get("vqvae_hash") == metrics.get("model_hash")
        if same and is_of_training_archive(metrics) and metrics.get("split") in splits:
            rate = splits[metrics["split"]]["bits_per_pixel_prior"]
            points[f"{prefix}codes, under {run.name}"] = (rate, score)
    for name, codec in reconstruction.codecs.items():
        points[prefix + name] = (codec["bits_per_pixel"], codec["ssim_foreground"])
    points["mean training image"] = (0.0, metrics["floor_mean_image"]["ssim_foreground"])
    return points


def search_plane(search: Search) -> Figure:
    """Draw the completed trials by rate and quality; `customdata` holds the name of the trial."""
    rows = [row for row in search.rows if row["status"] == "completed"]
    by_name = {row["trial"]: row for row in rows}
    groups = {
        "trials": ([row for row in rows if row["trial"] not in search.front], "markers", 1),
        "Pareto front": ([by_name[name] for name in search.front], "lines+markers", 0),
        "chosen": ([by_name[search.best]] if search.best else [], "markers", 2),
    }
    traces = [
        {
            "x": [row[search.rate] for row in members],
            "y": [row[search.quality] for row in members],
            "customdata": [row["trial"] for row in members],
            "text": [_describe(row, search.dimensions) for row in members],
            "name": name,
            "mode": mode,
            "marker": {"size": 10, "color": COLOURS[colour], "symbol": "circle"},
            "hovertemplate": "%{text}<br>%{y:.4f} at %{x:.4f}<extra></extra>",
        }
        for name, (members, mode, colour) in groups.items()
        if members
    ]
    ring = {"symbol": "circle-open", "size": 18, "line": {"width": 3}}
    traces[-1]["marker"] = {"color": COLOURS[2], **ring}
    labels = LABELS[search.rate], LABELS[search.quality]
    return {"data": traces, "layout": _layout("Trials: click one for its row", *labels)}


def _describe(row, dimensions):
    values = ", ".join(f"{name} {row[name]}" for name in dimensions if name in row)
    return f"trial {row['trial']}: {values}"


def parallel_coordinates(search: Search) -> Figure:
    """Draw each completed trial as a line through its values and metrics."""
    rows = [row for row in search.rows if row["status"] == "completed"]
    metrics = [name for name in ("score", search.rate, search.quality) if name in rows[0]]
    scores = [row["score"] for row in rows]
    lowest_is_best = search.objective[1] == "min"
    line = {
        "color": scores,
        "colorscale": [[0, COLOURS[4]], [1, COLOURS[0]]],
        "reversescale": lowest_is_best,
        "showscale": True,
    }
    shown = (*search.dimensions, *metrics)
    axes = [_axis(name, [row.get(name) for row in rows]) for name in shown]
    trace = {"type": "parcoords", "line": line, "dimensions": axes, "labelangle": -12}
    title = f"Values of the trials; colour: {search.objective[0]}"
    return {
        "data": [trace],
        "layout": {"title": {"text": title}, "margin": {"t": 110, "l": 90, "b": 30}},
    }


def _axis(name, values):
    numbers = all(isinstance(value, int | float) for value in values)
    if numbers and len(set(values)) > 6:
        return {"label": name, "values": values, "tickformat": ".4g"}
    # A few numbers are powers of two, as codebook sizes are: evenly spaced like categories.
    levels = sorted(set(values), key=lambda value: value if numbers else str(value))
    ticks = {
        "tickvals": [*range(len(levels))],
        "ticktext": [f"{level:.4g}" if numbers else str(level) for level in levels],
    }
    return {"label": name, "values": [levels.index(value) for value in values], **ticks}
