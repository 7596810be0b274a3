"""Operating points of trained models beside the curves of image codecs, on the same slices."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from brainslices.csv_files import write_rows
from brainslices.data.slices import Slices, open_slices
from brainslices.errors import InputError
from brainslices.evaluation.codecs import CODECS, codec_rate, search_quality, spread_subset
from brainslices.evaluation.image_metrics import score_slices, summarize
from brainslices.evaluation.rate_distortion import Curve, bd_rate
from brainslices.evaluation.scores import CODEC_TITLES
from brainslices.progress import bar
from brainslices.report.collect import read_reconstruction
from brainslices.report.names import check_different_names
from brainslices.report.results import INTERVALS
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.tables import format_interval, format_table
from brainslices.types import PathLike
from brainslices.visualization.figures import BLUE, GREY, INK, ORANGE, figure_panels

__all__ = ["FILES", "compare_with_codecs", "summary"]

logger = logging.getLogger(__name__)

FILES = ("metrics.json", "rate_distortion.csv", "rate_distortion.png")
SCORE = "ssim_foreground"
# Points of each codec's curve, how far it extends beyond the rates of the models, and the number of
# slices on which its ends are searched.
CODEC_POINTS, RATE_FACTOR, SPAN_SLICES = 6, 5, 16
ENDS = ("_low", "_high")
RATE_KEYS = {f"bits_per_pixel{end}": f"bits_per_pixel_prior{end}" for end in ("", *ENDS)}
ORIGIN = ("model_hash", "prior_hash", "sweeps", "rate_weight")
COLORS = dict(zip(CODEC_TITLES, (ORANGE, GREY, "#7a5195"), strict=True))


def compare_with_codecs(
    reconstructions: Sequence[PathLike], data: PathLike, out: PathLike
) -> dict[str, Any]:
    """Compare the rates of trained models with those of image codecs at the same score.

    Args:
        reconstructions: folders of reconstruct.py with `--prior`, of the same slices; their names
            (of MODEL/reconstruction MODEL) label the points.
        data: the slice archive that they were made of.
        out: folder to write, completely or not at all: `metrics.json`, `rate_distortion.csv` (a row
            for each point) and `rate_distortion.png`.

    Returns:
        The contents of `metrics.json`: `points`, and `bd_rate` of the models to each codec, None
        where they have no scores in common or the models do not form a curve.

    Raises:
        InputError: if a folder has no rate under a prior, was made of other slices or has the name
            of another one, or `data` is no archive.
    """
    out = Path(out).resolve()
    check_output_dir(out, FILES, "comparison")
    models, slices = _read_models(reconstructions, data)
    with atomic_folder(out) as folder:
        rates = [model["bits_per_pixel"] for model in models]
        span = min(rates) / RATE_FACTOR, max(rates) * RATE_FACTOR
        points = {codec: _codec_points(slices, codec, *span) for codec in CODECS}
        curves = {codec: _curve(codec, rows) for codec, rows in points.items()}
        for model in models:
            model |= _compare_rates(model, curves)
        rows = [*models, *(row for codec in CODECS for row in points[codec])]
        metrics = {
            "split": slices.split,
            "archive_hash": slices.archive_hash,
            "subjects": len(set(slices.subjects)),
            "slices": len(slices),
            "bd_rate": _bd_rates(models, curves),
            "points": rows,
        }
        write_rows(folder / "rate_distortion.csv", _with_all_columns(rows))
        _draw(folder / "rate_distortion.png", models, points)
        write_json(folder / "metrics.json", metrics)
    return metrics


def _read_models(
    reconstructions: Sequence[PathLike], data: PathLike
) -> tuple[list[dict[str, Any]], Slices]:
    if not reconstructions:
        raise InputError("`reconstructions` must name at least one folder. Received: none.")
    paths = [Path(path).resolve() for path in reconstructions]
    slices = open_slices(data, read_reconstruction(paths[0]).metrics.get("split"))
    if slices.archive_hash is None:
        raise InputError(f"`data` must be a slice archive. Received: data={data}.")
    models = [_read_model(path, slices) for path in paths]
    names = [model["name"] for model in models]
    check_different_names("reconstructions", list(zip(names, paths, strict=True)))
    return sorted(models, key=lambda model: model["bits_per_pixel"]), slices


def _read_model(path: Path, slices: Slices) -> dict[str, Any]:
    """Return the point of a reconstruction, with what it depends on."""
    metrics = read_reconstruction(path).metrics
    if any(name not in metrics for name in (*RATE_KEYS.values(), "prior_hash")):
        raise InputError(
            "`reconstructions` must have rates under a prior. "
            f"Received: {path}, which has none. Run reconstruct.py with --prior."
        )
    received = metrics.get("archive_hash"), metrics.get("split")
    if received != (slices.archive_hash, slices.split):
        raise InputError(
            f"`reconstructions` must be of split {slices.split} of {slices.path}. Received: "
            f"{path}, of split {received[1]} of the archive {str(received[0])[:12]}. Run "
            f"reconstruct.py on {slices.path} again."
        )
    # The layout of reproduce_oasis.sh: MODEL/reconstruction.
    name = path.parent.name if path.name == "reconstruction" else path.name
    rates = {name: metrics[key] for name, key in RATE_KEYS.items()}
    origin = {name: metrics.get(name) for name in ORIGIN}
    return {"name": name, "codec": "", **rates, **_scores(metrics), **origin}


def _codec_points(slices: Slices, codec: str, *rates: float) -> list[dict[str, Any]]:
    """Score a codec at evenly spread settings between two rates, the lower one first."""
    settings = CODECS[codec]
    subset = spread_subset(slices, SPAN_SLICES)
    first, last = (settings.index(search_quality(subset, codec, rate)) for rate in rates)
    chosen = np.unique(np.linspace(first, last, CODEC_POINTS).round().astype(int))
    key = f"codec_{codec}"
    points: dict[float, dict[str, Any]] = {}
    with bar(len(chosen), CODEC_TITLES[key], "settings") as progress:
        for index in chosen:
            rate, decoded = codec_rate(slices, codec, settings[index])
            scores = summarize(score_slices(slices, decoded, codec), {}, slices.subjects)
            del decoded  # as large as all slices in float32
            name = f"{CODEC_TITLES[key]} {settings[index]:.4g}"
            # Several settings of JPEG 2000 may give the same file.
            points[rate] = {"name": name, "codec": key, "bits_per_pixel": rate, **_scores(scores)}
            progress.update(1)
    return list(points.values())


def _scores(metrics):
    return {name: metrics[name] for name in INTERVALS}


def _curve(name: str, rows: Sequence[Mapping[str, Any]]) -> Curve | None:
    """Return the curve of some points; None if they do not form one."""
    try:
        return Curve([row["bits_per_pixel"] for row in rows], [row[SCORE] for row in rows])
    except InputError as error:
        logger.warning("%s: no rate difference can be computed. %s", name, error)
        return None


def _compare_rates(model, curves):
    """Relative difference of a model's rate to that of each codec at its score; None if unknown."""
    differences = {}
    for codec, curve in curves.items():
        rate = curve.rate_at(model[SCORE]) if curve else math.nan
        known = not math.isnan(rate)
        differences[f"rate_difference_{codec}"] = (
            model["bits_per_pixel"] / rate - 1 if known else None
        )
    return differences


def _bd_rates(models, curves):
    own = _curve("models", models) if len(models) > 1 else None
    rates = {}
    for codec, curve in curves.items():
        value = bd_rate(own, curve) if own and curve else math.nan
        rates[codec] = None if math.isnan(value) else value
    return rates


def _with_all_columns(rows):
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _draw(path, models, points):
    with figure_panels(path, 1, 1, inches=(6.4, 4.2)) as (panel,):
        for codec, rows in points.items():
            key = f"codec_{codec}"
            rates, scores = ([row[name] for row in rows] for name in ("bits_per_pixel", SCORE))
            panel.plot(rates, scores, ".-", color=COLORS[key], label=CODEC_TITLES[key])
        rates, scores = ([model[name] for model in models] for name in ("bits_per_pixel", SCORE))
        errors = [[abs(model[SCORE] - model[SCORE + end]) for model in models] for end in ENDS]
        style = {"fmt": "o-", "color": BLUE, "capsize": 3, "markersize": 5}
        panel.errorbar(rates, scores, errors, label="brainslices, with its prior", **style)
        names = [model["name"] for model in models]
        style = {"color": INK, "fontsize": 7, "textcoords": "offset points", "va": "center"}
        for number, (*point, name) in enumerate(sorted(zip(rates, scores, names, strict=True))):
            # Alternate sides, so that the names of neighbours do not overlap.
            side = -1 if number % 2 else 1
            align = {"xytext": (6 * side, -8 * side), "ha": "left" if side > 0 else "right"}
            panel.annotate(name, point, **align, **style)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="bits per pixel of the source", ylabel=SCORE)
        panel.legend(loc="lower right")


def summary(metrics: Mapping[str, Any]) -> str:
    """Format the metrics of a comparison as a table for the terminal.

    Args:
        metrics: as `compare_with_codecs` returns them.
    """
    models = [row for row in metrics["points"] if not row["codec"]]
    titles = {codec: CODEC_TITLES[f"codec_{codec}"] for codec in metrics["bd_rate"]}
    rows = [("", SCORE, "bits per pixel", *(f"against {title}" for title in titles.values()))]
    for model in models:
        savings = [_percent(model[f"rate_difference_{codec}"]) for codec in titles]
        cells = format_interval(model, SCORE, 4), f"{model['bits_per_pixel']:.4f}"
        rows.append((model["name"], *cells, *savings))
    rows.append(("mean (BD rate)", "", "", *(_percent(metrics["bd_rate"][key]) for key in titles)))
    note = f"{metrics['split']}: {metrics['subjects']} subjects, {metrics['slices']} slices"
    return f"{format_table(rows)}\n\nrate at the same {SCORE}; {note}; [95 % interval by subject]"


def _percent(value):
    return None if value is None else f"{value:+.1%}"
