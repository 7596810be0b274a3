"""The tables of a reconstruction: a CSV row for each slice, and a summary for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from brainslices.csv_files import write_rows
from brainslices.data.archive import SliceRecord
from brainslices.evaluation.scores import CODEC_TITLES, SCORES
from brainslices.tables import format_interval, format_table

__all__ = ["BASELINES", "reconstruction_summary", "write_slice_scores", "write_slice_table"]

BASELINES = {
    "mean training image": "floor_mean_image",
    "black image": "floor_black",
    **{title: key for key, title in CODEC_TITLES.items()},
}


def write_slice_scores(
    path: Path,
    records: Sequence[SliceRecord],
    scores: Mapping[str, np.ndarray],
    floors: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write a CSV file with the scores of each slice and its floors.

    Args:
        path: the file to write.
        records: the slices.
        scores: as `brainslices.evaluation.image_metrics.score_slices` returns them.
        floors: as `brainslices.evaluation.image_metrics.floor_scores` returns them.
    """
    columns = dict(scores)
    for name, floor in floors.items():
        columns |= {f"{name}_{key}": floor[key] for key in SCORES if SCORES[key].has_floor_columns}
    write_slice_table(path, records, columns)


def write_slice_table(
    path: Path, records: Sequence[SliceRecord], columns: Mapping[str, np.ndarray]
) -> None:
    """Write a CSV file with one row per slice: id, subject, split, position and other columns.

    Args:
        path: the file to write.
        records: the slices.
        columns: name -> array of shape (slices,).
    """
    fields = ("slice_id", "subject", "split", "position")
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [
        {name: getattr(record, name) for name in fields} | dict(zip(columns, row, strict=True))
        for record, row in zip(records, values, strict=True)
    ]
    write_rows(path, rows)


def reconstruction_summary(metrics: Mapping) -> str:
    """Format the metrics of a reconstruction as a text table with notes on how to read it.

    Args:
        metrics: as `vqvae.evaluate.reconstruct` returns them.
    """
    rows = [
        ("", *(score.title for score in SCORES.values()), "bits per pixel"),
        _score_row("model", metrics, metrics["bits_per_pixel_raw"]),
    ]
    if rate := metrics.get("bits_per_pixel_prior"):
        rows.append(_score_row("model with its prior", metrics, rate))
    for title, key in BASELINES.items():
        if key in metrics:
            rows.append(_score_row(title, metrics[key], metrics[key].get("bits_per_pixel")))
    lines = [
        format_table(rows),
        "",
        f"codebook usage {metrics['codebook_usage']:.1%} of {metrics['num_embeddings']} codes, "
        f"perplexity {metrics['perplexity']:.1f}",
        f"{metrics['split'] or 'all images'}: {metrics['subjects']} subjects, "
        f"{metrics['slices']} slices; [95 % interval by subject]",
        *(f"note: {note}" for note in _notes(metrics)),
    ]
    return "\n".join(lines)


def _score_row(title, scores, rate):
    cells = [format_interval(scores, name, score.digits) for name, score in SCORES.items()]
    return (title, *cells, None if rate is None else f"{rate:.4f}")


def _notes(metrics: Mapping) -> Iterator[str]:
    if metrics["archive_hash"] is None:
        yield "images from a folder: whether the model was trained on them is unknown."
    elif metrics["archive_hash"] != metrics["training_archive_hash"]:
        yield "not the archive the run was trained on: whether they share subjects is unknown."
    elif metrics["split"] == "train":
        yield "the model was trained on these slices: no measure of unseen brains."
    elif metrics["split"] == "validate":
        yield "the best epoch was chosen by these slices: the scores are slightly too good."
    if metrics["subjects"] == 1:
        yield "only one subject: the intervals carry no information."
