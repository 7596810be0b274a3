"""One HTML file with all it needs: pictures, plotly.js, style and script are in the file."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from scipy.ndimage import find_objects

from brainslices.errors import InputError
from brainslices.report import plots
from brainslices.report.collect import (
    Reconstruction,
    RunRecord,
    Sampling,
    Scoring,
    Search,
    read_reconstruction,
    read_run,
    read_sampling,
    read_scoring,
)
from brainslices.report.names import check_different_names, folder_name
from brainslices.report.verdict import judge
from brainslices.runs.atomic import atomic_path
from brainslices.types import PathLike
from brainslices.visualization.figures import ReconstructionRow
from brainslices.visualization.html import COMPARISON_CSS, colour, comparison, picture_url

__all__ = ["write_report"]

MODELS = {"vqvae": "VQ-VAE", "pixelcnn": "PixelCNN prior"}
# Metrics of a run, which are of its validation slices unless they say otherwise.
MEASURES = {
    "ssim_foreground": "ssim_foreground, validation",
    "ssim": "ssim, validation",
    "train_codebook_usage": "codebook usage, training",
    "perplexity": "perplexity of the codes",
    "bits_per_pixel_raw": "bits per pixel, raw",
    "bits_per_pixel_prior": "bits per pixel under the prior, validation",
    "nats_per_code": "nats per code, validation",
    "nats_per_code_by_position": "nats per code by position alone, validation",
    "seconds": "seconds of training",
}
# Samples are cut to the bounding box of pixels above DARK in any of them, plus MARGIN pixels.
DARK, MARGIN = 5, 4
# Positions at which several samplings are compared.
MAX_LEVELS = 12


def write_report(
    out: PathLike,
    runs: Sequence[PathLike] = (),
    *,
    reconstructions: Sequence[PathLike] = (),
    samples: Sequence[PathLike] = (),
    scores: PathLike | None = None,
    search: Search | None = None,
) -> Path:
    """Write a report; what is not given, or not measured yet, is named in it.

    Args:
        out: the HTML file to write, or to replace.
        runs: run folders of either stage, trained or half trained.
        reconstructions: output folders of reconstruct.py.
        samples: output folders of sample.py; several are shown side by side.
        scores: output folder of score.py.
        search: the trials of a search.

    Returns:
        The path of the file.

    Raises:
        InputError: if nothing is given, two folders have the same name, `out` does not end in
            .html, or an input is corrupt.
    """
    out = Path(out)
    if out.suffix != ".html":
        raise InputError(f"`out` must end in .html. Received: out={out}.")
    if not (runs or reconstructions or samples or scores or search):
        raise InputError("`runs` must name at least one run folder. Received: none.")
    folders = {"runs": runs, "reconstructions": reconstructions, "samples": samples}
    for argument, paths in folders.items():
        check_different_names(argument, [(folder_name(Path(path)), Path(path)) for path in paths])
    text = _render(
        [read_run(path) for path in runs],
        [read_reconstruction(path) for path in reconstructions],
        [read_sampling(path) for path in samples],
        read_scoring(scores) if scores else None,
        search,
    )
    with atomic_path(out) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")
    return out


@functools.cache  # compiling the template takes longer than rendering it
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brainslices.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "picture": picture_url, "codes": _codes}
    environment.filters["similarity"] = lambda values: picture_url(colour(values, "magma"))
    environment.globals |= {"comparison": comparison, "comparison_css": Markup(COMPARISON_CSS)}
    return environment.get_template("report.html.j2")


def _render(
    runs: list[RunRecord],
    reconstructions: list[Reconstruction],
    samplings: list[Sampling],
    scoring: Scoring | None,
    search: Search | None,
) -> str:
    figures = {f"curves-{row}": figure for row, figure in enumerate(plots.learning_curves(runs))}
    if reconstructions:
        figures["rate"] = plots.rate_plane(reconstructions, runs)
        if any(item.code_counts.size for item in reconstructions):
            figures["usage"] = plots.code_usage(reconstructions)
    if search and search.best and search.rate:
        figures["search"] = plots.search_plane(search)
        figures["parallel"] = plots.parallel_coordinates(search)
    return _template().render(
        runs=runs,
        measures=[*_measures(runs)],
        reconstructions=reconstructions,
        samplings=samplings,
        levels=_levels(samplings),
        scoring=scoring,
        search=search,
        boxes=_content_boxes(samplings),
        sentences=judge(runs, reconstructions, samplings),
        notes=list(_notes(runs, reconstructions, samplings, scoring)),
        figures=figures,
        plotly=Markup(get_plotlyjs()),  # noqa: S704  plotly.js itself
    )


def _measures(runs):
    """Yield the rows of the table of runs: a label, and a value for each run."""
    yield "model", [MODELS[run.kind] for run in runs]
    yield "training", [run.status for run in runs]
    for name, label in MEASURES.items():
        values = [run.metrics.get(name) for run in runs]
        if any(value is not None for value in values):
            yield label, values


def _notes(runs, reconstructions, samplings, scoring):
    """Yield what is missing, or does not belong together."""
    for run in runs:
        if not run.status.startswith("trained"):
            yield f"{run.name}: {run.status}. Run its training command again to resume."
        if run.counts is None:
            yield f"{run.name}: the archive is not where it was; its subjects are not counted."
    scorings = [scoring] if scoring else []
    made_by = [("vqvae", "model_hash", item) for item in reconstructions]
    made_by += [("pixelcnn", "prior_hash", item) for item in (*samplings, *scorings)]
    for kind, key, output in made_by:
        hashes = [run.model_hash for run in runs if run.kind == kind]
        if hashes and output.metrics.get(key, hashes[0]) not in hashes:
            yield f"{output.name} is of another model, or another epoch, than the runs given."
    for item in reconstructions:
        if not item.examples:
            yield f"{item.name} has no examples.npz: run reconstruct.py again to see slices."


def _levels(samplings):
    """Return the samples that are compared: of each, that nearest to each of a few positions."""
    if not all(sampling.slices for sampling in samplings):
        return []
    positions = [[sample.position for sample in sampling.slices] for sampling in samplings]
    low, high = max(map(min, positions), default=0), min(map(max, positions), default=1)
    levels = np.linspace(low, max(low, high), MAX_LEVELS)
    rows = [np.abs(np.subtract.outer(levels, values)).argmin(axis=1) for values in positions]
    compared = dict.fromkeys(zip(*map(np.ndarray.tolist, rows), strict=True))
    return [
        [sampling.slices[row] for sampling, row in zip(samplings, level, strict=True)]
        for level in compared
    ]


def _content_boxes(samplings):
    """Shape of images -> rows and columns that hold all content of those of this shape."""
    images = [image for sampling in samplings for image in sampling.images]
    shapes = {
        image.shape: [other for other in images if other.shape == image.shape] for image in images
    }
    return {shape: _content_box(same) for shape, same in shapes.items()}


def _content_box(images):
    found = find_objects((np.max(images, axis=0) > DARK).astype("uint8"))
    sides = found[0] if found else (slice(0, None), slice(0, None))
    return tuple(slice(max(s.start - MARGIN, 0), s.stop and s.stop + MARGIN) for s in sides)


def _number(value: object) -> str:
    """Format a value of a table: a dash for none, four digits of a float."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _codes(row: ReconstructionRow, last_code: int) -> str:
    """Draw a code grid in the colours of the reconstruction figure, one pixel per code."""
    return picture_url(colour(row.codes / max(last_code, 1), "viridis"))
