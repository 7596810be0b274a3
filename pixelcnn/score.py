"""Scores of slices under a prior: what each costs, and maps of what is unlike the training."""

import math
from pathlib import Path

import numpy as np

from brainslices.csv_files import write_rows
from brainslices.data.code_grids import CodeGrids
from brainslices.data.crop import CropBox
from brainslices.data.slices import Slices
from brainslices.data.subject_table import load_subjects
from brainslices.evaluation.image_metrics import with_interval
from brainslices.evaluation.reports import write_slice_table
from brainslices.resources import check_needed
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.tables import format_interval
from brainslices.types import PathLike
from brainslices.visualization.figures import pick_extremes
from brainslices.visualization.surprise import SurpriseRow, surprise_figure
from pixelcnn import lesion_scores
from pixelcnn.config import ScoringConfig
from pixelcnn.positions import slice_positions
from pixelcnn.scorer import Scorer
from pixelcnn.slice_prior import SlicePrior

__all__ = ["FILES", "score", "summary"]

FILES = (
    "metrics.json",
    "slices.csv",
    "surprise.png",
    "surprise_maps.npy",
    "prediction_maps.npy",
    "restoration_maps.npy",
    "lesions.csv",
    "report.html",
)
LABELS = {"best": "most", "median": "median", "worst": "least"}


def score(
    run: PathLike,
    slices: Slices,
    out: PathLike,
    config: ScoringConfig | None = None,
) -> dict:
    """Score slices under a prior; the folder appears complete or not at all.

    Args:
        run: run folder of a trained prior.
        slices: the slices, as `open_slices` returns them.
        out: folder to write, new, empty or an earlier scoring: `metrics.json`, `slices.csv` (a row
            a slice), `surprise_maps.npy` (float16 of shape (slices, rows, cols), nats) and
            `surprise.png` (the most, the median and the least surprising slices).
        config: options; None for the defaults. With `predict`, `prediction_maps.npy` is written
            too, with `restore`, `restoration_maps.npy`, float16 of the same shape; with `lesions`,
            `lesions.csv`.

    Returns:
        The contents of `metrics.json`.

    Raises:
        InputError: if the runs, the code grids, the data or the output folder cannot be used.
    """
    out, config = Path(out).resolve(), config or ScoringConfig()
    check_output_dir(out, FILES, "scoring")
    prior = SlicePrior.from_run(run, config.vqvae)
    slices.check_shape(tuple(prior.decoder.image_shape), prior.provenance.run.path)
    _check_needed(prior, len(slices), out, config)
    grids = CodeGrids.load(config.codes or prior.provenance.run.code_grids_path)
    table = load_subjects(slices.path) if slices.archive_hash else {}
    of_validation = table if slices.archive_hash == grids.archive_hash else {}
    with atomic_folder(out) as folder:
        scorer = Scorer(prior, grids, of_validation, config.batch_size)
        positions = slice_positions(prior, slices, config.batch_size)
        positions = scorer.with_conditions(positions, table, slices.subjects)
        return _write(folder, scorer, slices, positions, config)


def _check_needed(prior, count, out, config):
    pixels, codes = math.prod(prior.decoder.image_shape), math.prod(prior.model.grid_shape)
    check_needed(
        f"{count} slices, restore={config.restore}",
        # The codes of all restorations, and the pixels of those of one slice.
        memory=4 * config.restore * (count * codes + pixels),
        disk=2 * count * pixels * (1 + config.predict + bool(config.restore)),
        folder=out,
    )


def _write(folder, scorer, slices, positions, config):
    scored = scorer(slices, positions, slices.subjects)
    shape = (len(slices), *scorer.decoder.image_shape)
    maps = (scorer.maps(values[np.newaxis])[0] for values in scored.surprise)
    written = {"surprise": _write_maps(folder / "surprise_maps.npy", maps, shape)}
    if config.predict:
        maps = scorer.prediction.maps(slices, scored.codes, positions, "predicting")
        written["prediction"] = _write_maps(folder / "prediction_maps.npy", maps, shape)
    if config.restore:
        maps = scorer.restoration_maps(slices, positions, scored, config.restore, config.seed)
        written["restoration"] = _write_maps(folder / "restoration_maps.npy", maps, shape)
    pixels = scorer.most_surprising_pixels(scored.surprise)
    _write_table(folder / "slices.csv", slices, positions, scored, pixels)
    surprise_figure(folder / "surprise.png", list(_figure_rows(scorer, slices, scored, written)))
    metrics = {
        **with_interval("bits_per_slice", scored.bits, slices.subjects),
        **with_interval("nats_per_code", scored.nats.mean(axis=(1, 2)), slices.subjects),
        **with_interval("surprise", scored.surprise.mean(axis=(1, 2)), slices.subjects),
        **with_interval("percentile", scored.percentiles, slices.subjects),
        "nats_per_code_validate": float(scorer.reference.reference_nats.mean()),
        "subjects": len(set(slices.subjects)),
        "slices": len(slices),
        "split": slices.split,
        "archive_hash": slices.archive_hash,
        **{name: scorer.prior.provenance.metadata[name] for name in ("vqvae_hash", "prior_hash")},
    }
    if config.lesions:
        metrics["lesions"] = lesion_scores.measure_lesions(
            scorer, slices, positions, config.restore, config.seed
        )
        write_rows(folder / "lesions.csv", metrics["lesions"])
    write_json(folder / "metrics.json", metrics)
    return metrics


def _write_maps(path, maps, shape):
    """Write one map after the other; return the file's array."""
    array = np.lib.format.open_memmap(path, "w+", "float16", shape)
    for row, values in enumerate(maps):
        array[row] = values
    array.flush()
    return array


def _write_table(path, slices, positions, scored, pixels):
    columns = {
        "position": np.reshape(positions, (len(slices), -1))[:, 0],  # without conditions
        "bits": scored.bits,
        "nats_per_code": scored.nats.mean(axis=(1, 2)),
        "surprise": scored.surprise.mean(axis=(1, 2)),
        "percentile": scored.percentiles,
        "most_surprise": scored.surprise.max(axis=(1, 2)),
        "row": pixels[:, 0],
        "col": pixels[:, 1],
    }
    write_slice_table(path, slices.records, columns)


def _figure_rows(scorer, slices, scored, maps):
    """The most, the median and the least surprising slices, cut to what the codes cover."""
    crop = CropBox(*scorer.decoder.crop)
    for label, row in pick_extremes(scored.surprise.mean(axis=(1, 2))):
        yield SurpriseRow(
            label=LABELS[label],
            slice_id=slices.records[row].slice_id,
            original=crop.cut(slices[row][np.newaxis])[0],
            bits=scored.bits[row],
            percentile=scored.percentiles[row],
            **{
                name: crop.cut(array[row : row + 1]).astype("float32")[0]
                for name, array in maps.items()
            },
        )


def summary(metrics: dict) -> str:
    """Describe a scoring in two lines of text, and tables of the lesions.

    Args:
        metrics: as `score` returns them.
    """
    lines = (
        f"{format_interval(metrics, 'bits_per_slice', 0)} bits per slice, "
        f"{format_interval(metrics, 'nats_per_code', 3)} nats per code, validation "
        f"{metrics['nats_per_code_validate']:.3f}; percentile among validation slices "
        f"{format_interval(metrics, 'percentile', 0)}\n"
        f"{metrics['split'] or 'all images'}: {metrics['subjects']} subjects, "
        f"{metrics['slices']} slices; [95 % interval by subject]"
    )
    if "lesions" in metrics:
        lines += f"\n\n{lesion_scores.summary(metrics['lesions'])}"
    return lines
