"""Reconstruction of unseen slices by a trained VQ-VAE: scores, floors, figure and pictures."""

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from brainslices.data.crop import CropBox
from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from brainslices.evaluation.codecs import codec_rate
from brainslices.evaluation.image_metrics import (
    SCORES,
    floor_scores,
    score_slices,
    similarity_map,
    summarize,
)
from brainslices.progress import bar
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from brainslices.visualization.figures import (
    ReconstructionRow,
    pick_extremes,
    reconstruction_figure,
)
from vqvae.codebook_metrics import CodebookPerplexity, CodebookUsage
from vqvae.model import VQVAE

__all__ = ["reconstruct", "summary"]

FILES = ("metrics.json", "slices.csv", "reconstruction.png", "pictures")
CODEC_SLICES = 96
# Settings of each codec from the lowest rate up; JPEG 2000's ratios are 1 % apart.
CODEC_QUALITIES = {"avif": range(101), "jpeg2000": np.geomspace(200, 1.05, 512).tolist()}


def reconstruct(
    run: Path,
    data: Path,
    out: Path,
    *,
    split: str | None = None,
    batch_size: int = 32,
    pictures: bool = False,
    codecs: bool = False,
) -> dict:
    """Reconstruct slices and measure how like their originals they are.

    Args:
        run: folder of a trained VQ-VAE.
        data: a slice archive, or a folder of grey pictures.
        out: folder to write: `metrics.json`, `slices.csv` (a row a slice), `reconstruction.png`
            (the best, the median and the worst slices) and perhaps `pictures/`. It appears
            complete or not at all, and takes the place of an earlier reconstruction.
        split: as `open_slices` takes it.
        batch_size: slices reconstructed at a time.
        pictures: write the reconstructions too, as 8-bit grey PNGs of the source's size.
        codecs: code the same slices with AVIF and JPEG 2000 too, at the lowest rate that is not
            under the model's raw rate (their highest, if all are under it), found on evenly spread
            slices, at most `CODEC_SLICES`.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: if the run, the data or the folder to write cannot be used; nothing is
            written then.
    """
    run, out = Run(run), Path(out).resolve()
    config = run.open_config("vqvae")
    check_output_dir(out, FILES, "reconstruction")
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}.")
    slices = open_slices(data, split)
    model = VQVAE.from_run(run)
    _check_pictures(slices, model, run)
    training_mean = _training_mean(run)
    facts = {
        "split": slices.split,
        "archive_hash": slices.archive_hash,
        "training_archive_hash": config["archive_hash"],
        "model_hash": file_hash(run.model_path),
        "num_embeddings": model.config.num_embeddings,
    }
    with atomic_folder(out) as new:
        metrics = _measure(model, slices, training_mean, new, batch_size, pictures)
        if codecs:
            metrics |= _codec_scores(slices, model.bits_per_pixel_raw)
        metrics |= facts
        write_json(new / "metrics.json", metrics)
    return metrics


def summary(metrics: dict) -> str:
    """The measurement as a table of text, with what must be known to read it.

    Args:
        metrics: as `reconstruct` returns it.
    """
    raw = metrics["bits_per_pixel_raw"]
    rows = [
        ("model", metrics, raw),
        ("mean training image", metrics["floor_mean_image"], None),
        ("black image", metrics["floor_black"], None),
    ]
    for key, name in (("codec_avif", "AVIF"), ("codec_jpeg2000", "JPEG 2000")):
        if key in metrics:
            scores = metrics[key]
            rows.append((name, scores, scores["bits_per_pixel"]))
    cells = [("", "ssim", "ssim_foreground", "PSNR in dB", "bits per pixel")]
    for name, scores, rate in rows:
        written = [_with_interval(scores, key, 2 if key == "psnr_db" else 4) for key in SCORES]
        cells.append((name, *written, "" if rate is None else f"{rate:.4f}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines += [
        "",
        f"codebook usage {metrics['codebook_usage']:.1%} of {metrics['num_embeddings']} codes, "
        f"perplexity {metrics['perplexity']:.1f}",
        f"{metrics['split'] or 'all pictures'}: {metrics['subjects']} subjects, "
        f"{metrics['slices']} slices; [95 % interval by subject]",
    ]
    return "\n".join(lines + [f"note: {note}" for note in _notes(metrics)])


def _with_interval(scores, name, digits):
    mean, low, high = (scores[name + end] for end in ("", "_low", "_high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _notes(metrics):
    if metrics["archive_hash"] is None:
        yield "pictures from a folder: whether the model was trained on them is not known."
    elif metrics["archive_hash"] != metrics["training_archive_hash"]:
        yield (
            "another archive than the run was trained on: whether they share subjects is not known."
        )
    elif metrics["split"] == "train":
        yield "the model was trained on these slices: no measure of unseen brains."
    elif metrics["split"] == "validate":
        yield "the best epoch was chosen by these slices: the scores are slightly too good."
    if metrics["subjects"] == 1:
        yield "one subject alone: the intervals say nothing."


def _check_pictures(slices, model, run):
    """Reads every picture once: a bad one must not be found after minutes of work."""
    rows, cols = model.image_shape
    for row, record in enumerate(slices.records):
        shape = slices.read(row).shape
        if shape != (rows, cols):
            named = slices.path if slices.archive_hash else slices.path / record.source
            raise InputError(
                f"{named} has {shape[0]} x {shape[1]} pixels (rows x cols), but the model of "
                f"{run.path} takes {rows} x {cols}. Give pictures of that size, or a --run that "
                "was trained on the other."
            )


def _training_mean(run):
    """The mean training image that the run keeps."""
    try:
        return np.load(run.mean_image_path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{run.mean_image_path} cannot be read ({error}). Start the training command again: it "
            "writes the file anew and trains no further than asked."
        ) from error


def _pairs(model, originals: Iterable, batch_size) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes (r, c) and picture (rows, cols) of each original, a batch in memory at a time."""
    originals = iter(originals)
    # One shape, one compilation: the last batch is filled up with black.
    batch = np.zeros((batch_size, *model.image_shape, 1), "float32")
    while found := list(islice(originals, batch_size)):
        batch[: len(found), ..., 0] = found
        batch[len(found) :] = 0
        outputs = model.predict_on_batch(batch)
        images = np.clip(outputs["reconstruction"][: len(found), ..., 0], 0, 1)
        yield from zip(outputs["codes"][: len(found)], images, strict=True)


def _measure(model, slices, training_mean, folder, batch_size, pictures):
    """Scores all slices, writes the table, the figure and the pictures, gives the metrics."""
    batch_size = min(batch_size, len(slices))
    code_grids = np.empty((len(slices), *model.code_grid_shape), "int32")

    def images():
        for row, (codes, image) in enumerate(_pairs(model, slices, batch_size)):
            code_grids[row] = codes
            if pictures:
                _write_picture(folder / "pictures", slices.records[row], image)
            yield image

    scores = score_slices(slices, images(), description="reconstructing")
    if np.isnan(scores["ssim_foreground"]).all():
        raise InputError(f"All pictures of {slices.path} are black: there is nothing to score.")
    floors = floor_scores(slices, training_mean)
    _write_table(folder / "slices.csv", slices.records, scores, floors)
    reconstruction_figure(
        folder / "reconstruction.png", _figure_rows(model, slices, scores, batch_size)
    )
    metrics = summarize(scores, floors, slices.subjects)
    metrics["bits_per_pixel_raw"] = model.bits_per_pixel_raw
    for metric in (CodebookUsage, CodebookPerplexity):
        counted = metric(model.config.num_embeddings)
        counted.update_state(code_grids)
        name = "codebook_usage" if metric is CodebookUsage else "perplexity"
        metrics[name] = float(counted.result())
    return metrics


def _write_picture(folder, record, image):
    # An id is a path below the source; a table of files may have led out of it.
    parts = [part for part in PurePosixPath(record.slice_id).parts if part not in ("/", "..")]
    path = folder.joinpath(*parts[:-1], f"{parts[-1]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(image * 255).astype("uint8")).save(path)


def _write_table(path, records, scores, floors):
    columns = dict(scores)
    for name, floor in floors.items():
        columns |= {f"{name}_{key}": floor[key] for key in ("ssim", "ssim_foreground")}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slice_id", "subject", "split", "position", *columns])
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        for record, row in zip(records, values, strict=True):
            writer.writerow([record.slice_id, record.subject, record.split, record.position, *row])


def _figure_rows(model, slices, scores, batch_size):
    """The best, the median and the worst slices, cut to what the codes cover."""
    picked = pick_extremes(scores["ssim_foreground"])
    pairs = _pairs(model, (slices[row] for _, row in picked), batch_size)
    crop, rows = CropBox(*model.crop), []
    for (label, row), (codes, image) in zip(picked, pairs, strict=True):
        shown = np.stack([slices[row], image, similarity_map(slices[row], image)])
        original, reconstruction, similarity = crop.cut(shown)
        rows.append(
            ReconstructionRow(
                label=label,
                slice_id=slices.records[row].slice_id,
                original=original,
                codes=codes,
                reconstruction=reconstruction,
                similarity=similarity,
                ssim=scores["ssim"][row],
                ssim_foreground=scores["ssim_foreground"][row],
            )
        )
    return rows


def _codec_scores(slices, bits_per_pixel):
    """Scores of classical codecs at the lowest rate that is not under the model's."""
    some = [slices[row] for row in range(0, len(slices), -(-len(slices) // CODEC_SLICES))]
    results = {}
    for codec, qualities in CODEC_QUALITIES.items():
        with bar(None, codec, "settings") as tried:

            def rate(quality, codec=codec, tried=tried):
                tried.update(1)
                return codec_rate(some, codec, quality)[0]

            place = bisect_left(qualities, bits_per_pixel, key=rate)
        quality = qualities[min(place, len(qualities) - 1)]
        reached, decoded = codec_rate(slices, codec, quality)
        scores = score_slices(slices, decoded, description=codec)
        results[f"codec_{codec}"] = {
            "bits_per_pixel": reached,
            "quality": quality,
            **summarize(scores, {}, slices.subjects),
        }
    return results
