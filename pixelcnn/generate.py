"""Sampled slices as files: PNGs, contact sheet, codes and scores."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brainslices.csv_files import write_rows
from brainslices.data.archive import SliceArchive
from brainslices.data.crop import CropBox
from brainslices.data.images import to_uint8
from brainslices.data.subject_table import is_numeric
from brainslices.errors import InputError
from brainslices.evaluation.condition_slopes import condition_slopes, known_values
from brainslices.evaluation.generation_metrics import check_comparable, evaluate_samples
from brainslices.evaluation.nearest import NearestTrain
from brainslices.resources import check_needed
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.tables import format_interval, format_table
from brainslices.types import PathLike
from brainslices.visualization.contact_sheets import contact_sheet

__all__ = ["FILES", "Samples", "decode_batches", "spread_positions", "summary", "write_samples"]

FILES = (
    "metrics.json",
    "contact_sheet.png",
    "codes.npz",
    "slices",
    "nearest",
    "nearest.csv",
    "report.html",
)
# The most positions that samples are spread over, and the most images on a contact sheet.
MAX_POSITIONS, MAX_SHOWN = 32, 96
# A file takes at least a block of the file system.
MIN_PNG_BYTES = 4096
MEASURES = {
    "pairwise_ms_ssim": "MS-SSIM between samples",
    "nearest_train_ssim": "SSIM to nearest training slice",
    "frechet_distance": "Frechet distance to test",
    "density": "density among test slices",
    "coverage": "coverage of test slices",
    "foreground_area_difference": "foreground area, difference",
    "intensity_quantile_difference": "intensity quantiles, difference",
}


@dataclass(frozen=True)
class Samples:
    """Slices that are sampled and decoded lazily, as `batches` is read.

    Args:
        batches: of `{"codes", "log_prob", "images"}`: int array and float32 array of shape (batch,
            r, c), and float32 array of shape (batch, rows, cols, 1) in [0, 1]. Read once.
        positions: float32 array of shape (samples,), rising within each group.
        metadata: how the slices are sampled, for `metrics.json`; `seed` and `temperature` included.
        original: float32 array of shape (rows, cols), the image that is inpainted.
        groups: labels of groups of equal size, each a row of the contact sheet; empty for none.
    """

    batches: Iterable[Mapping[str, np.ndarray]]
    positions: np.ndarray
    metadata: dict[str, Any]
    original: np.ndarray | None = None
    groups: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The group and position of each sample."""
        groups = np.repeat(self.groups or [""], len(self.positions) // (len(self.groups) or 1))
        return [
            ", ".join(filter(None, (group, f"position {position:.2f}")))
            for group, position in zip(groups, self.positions, strict=True)
        ]


def spread_positions(
    count: int,
    trained: tuple[float, float],
    positions: Sequence[float] = (),
    per_position: int = 1,
) -> np.ndarray:
    """Choose the positions at which slices are sampled.

    Args:
        count: number of slices.
        trained: lowest and highest position of the training slices.
        positions: positions that the slices take in turn; if empty, at most 32 positions are spread
            evenly over the trained range.
        per_position: the least number of slices at each spread position: measures of diversity
            compare slices at one position.

    Returns:
        float32 array of shape (count,), rising.

    Raises:
        InputError: if `count` is not positive or under the number of positions, or a position is
            outside the trained range.

    Example:
        >>> spread_positions(3, (0.0, 1.0)).tolist()
        [0.0, 0.5, 1.0]
        >>> spread_positions(3, (0.0, 1.0), (0.75, 0.25)).tolist()
        [0.25, 0.75, 0.75]
    """
    if count < (least := max(1, len(positions))):
        raise InputError(
            f"`count` must be at least {least}: one slice at each position. Received: {count=}."
        )
    low, high = trained
    for position in positions:
        # In float32, as in archives, where 0.65 is slightly above 0.65.
        if not np.float32(low) <= np.float32(position) <= np.float32(high):
            raise InputError(
                f"`position` must be in the range of the prior's training slices, from {low:g} "
                f"(lowest) to {high:g} (highest). Received: position={position:g}."
            )
    number = max(1, min(count // per_position, MAX_POSITIONS))
    # A single position is the middle.
    spread = np.linspace(low, high, number) if number > 1 else [(low + high) / 2]
    return np.sort(np.resize(positions or spread, count)).astype("float32")


def decode_batches(
    batches: Iterable[Mapping[str, np.ndarray]], decode: Callable[[np.ndarray], np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Add the decoded images to batches of codes.

    Args:
        batches: of `{"codes", "log_prob"}`, each of shape (batch, r, c).
        decode: codes (batch, r, c) -> float32 images (batch, rows, cols, 1) in [0, 1].

    Yields:
        The batches, each with its `images`.
    """
    for batch in batches:
        yield {**batch, "images": np.asarray(decode(batch["codes"]), "float32")}


def write_samples(
    out: PathLike,
    samples: Samples,
    crop: CropBox,
    archive: SliceArchive | None = None,
    *,
    evaluate: bool = False,
    nearest: bool = False,
) -> dict:
    """Write slices as they are sampled; the folder is written completely or not at all.

    Args:
        out: new or empty folder, or an earlier sampling to replace, for `slices/` (8-bit PNGs),
            `contact_sheet.png` (at most 96 slices), `codes.npz` and `metrics.json`. With `nearest`
            also the training slice nearest to each sample on the sheet, with `evaluate` to every
            sample (not of several values of a condition): `nearest.csv` and, under the sample's
            name, `nearest/`.
        samples: the slices.
        crop: the part of an image that the contact sheet shows.
        archive: the training slices, required by `evaluate` and `nearest`.
        evaluate: measure the samples and real slices.
        nearest: show each sample beside its nearest training slice.

    Returns:
        The metrics: `samples`, the metadata, `nats_per_code_samples` unless inpainted, and with
        `evaluate` the scores of `evaluate_samples`; of several values of a condition instead
        `condition_slopes`, by its name.

    Raises:
        InputError: if the folder holds unexpected files, or the archive too few slices to compare.
    """
    out = Path(out).resolve()
    check_output_dir(out, FILES, "sampling")
    count = len(samples.positions)
    check_needed(f"count={count}", disk=count * MIN_PNG_BYTES, folder=out)
    if evaluate or nearest:
        _check_archive(archive, samples, evaluate)
    with atomic_folder(out) as folder:
        return _write(folder, samples, crop, archive, evaluate, nearest)


def _write(folder, samples, crop, archive, evaluate, nearest):
    # Positions rise: the sheet shows samples from the whole range, of each group the same.
    count, groups = len(samples.positions), len(samples.groups) or 1
    size = count // groups
    columns = max(min(size, MAX_SHOWN // groups), 1)
    in_group = np.linspace(0, size - 1, columns).round().astype(int)
    shown = np.concatenate([in_group + group * size for group in range(groups)])
    # To save memory, only the images that are measured or on the sheet are kept.
    kept = np.arange(count) if evaluate else shown
    names, codes, log_prob, images = _write_images(folder / "slices", samples, kept)
    metrics, neighbours = {"samples": count, **samples.metadata}, None
    if samples.original is None:  # else most codes are observed
        metrics["nats_per_code_samples"] = float(-log_prob.mean())
    seed = samples.metadata["seed"]
    if evaluate and samples.groups:
        name, values = _condition_values(samples.groups)
        slopes = condition_slopes(images, samples.positions[:size], values, archive, name, seed)
        metrics["condition_slopes"] = {name: slopes}
        images, kept = images[shown], shown
    elif evaluate:
        metrics |= evaluate_samples(images, samples.positions, archive, seed=seed)
        neighbours = metrics.pop("nearest")
    if nearest and neighbours is None:
        neighbours = NearestTrain(archive)(images, "nearest training slices")
    if neighbours:
        _write_nearest(folder, [names[index] for index in kept], archive, *neighbours)
        sheet = np.isin(kept, shown)
        images, neighbours = images[sheet], [values[sheet] for values in neighbours]
    neighbour_images = _sheet_neighbours(
        images, samples, crop, archive if nearest else None, neighbours
    )
    labels = [samples.labels[index] for index in shown]
    columns = columns if samples.groups else None
    contact_sheet(folder / "contact_sheet.png", crop.cut(images), labels, neighbour_images, columns)
    np.savez(folder / "codes.npz", codes=codes, positions=samples.positions, log_prob=log_prob)
    write_json(folder / "metrics.json", metrics)
    return metrics


def _condition_values(groups: Sequence[str]) -> tuple[str, list[float]]:
    """Return the name and the values of a numeric condition from the labels of its groups."""
    names, values = zip(*(group.rsplit(" ", 1) for group in groups), strict=True)
    if not is_numeric(values) or len(set(values)) < 2:
        raise InputError(
            "`evaluate` compares several values of a numeric condition, or samples of one value. "
            f"Received: {', '.join(groups)}."
        )
    return names[0], [float(value) for value in values]


def _check_archive(archive, samples, evaluate):
    if archive is None:
        raise InputError("`archive` must be a slice archive to compare with. Received: None.")
    if evaluate and samples.groups:
        known_values(archive, _condition_values(samples.groups)[0])
    elif evaluate:
        check_comparable(samples.positions, archive, samples.metadata["seed"])


def _write_images(folder, samples, kept):
    """Write all images; return all names, codes, log-probabilities, and the images of `kept`."""
    folder.mkdir()
    names, codes, log_prob, images = [], [], [], []
    groups = [re.sub(r"\W+", "_", f"{group} ") for group in samples.groups] or [""]
    groups = np.repeat(groups, len(samples.positions) // len(groups))
    for batch in samples.batches:
        for image in to_uint8(batch["images"][..., 0]):
            index = len(names)
            position = f"position_{samples.positions[index]:.3f}"
            names.append(f"sample_{index:04d}_{groups[index]}{position}.png")
            Image.fromarray(image).save(folder / names[-1])
            if index in kept:
                images.append(image)
        codes.append(batch["codes"].astype("uint16"))
        log_prob.append(batch["log_prob"])
    images = np.stack(images) / np.float32(255)
    return names, np.concatenate(codes), np.concatenate(log_prob), images


def _write_nearest(folder, names, archive, rows, scores):
    """Write the nearest training slice of each named sample, and their table."""
    (folder / "nearest").mkdir()
    pixels = archive.images
    rows_of_table = []
    for name, row, score in zip(names, rows, scores.tolist(), strict=True):
        slice_id = archive.index[row].slice_id
        rows_of_table.append({"sample": name, "slice_id": slice_id, "ssim": score})
        Image.fromarray(pixels[row]).save(folder / "nearest" / name)
    write_rows(folder / "nearest.csv", rows_of_table)


def _sheet_neighbours(images, samples, crop, archive, neighbours):
    """Return the image to show beside each sample: the original, or a training slice."""
    if samples.original is not None:
        return [(crop.cut(samples.original[None])[0], "original")] * len(images)
    return archive and _nearest_slices(archive, crop, neighbours)


def _nearest_slices(archive, crop, neighbours):
    """Return the nearest training slice of each image, and its label."""
    rows, scores = neighbours
    labels = [
        f"{archive.index[row].slice_id}\nSSIM {score:.3f}"
        for row, score in zip(rows, scores, strict=True)
    ]
    return list(zip(crop.cut(archive.load(rows)[..., 0]), labels, strict=True))


def summary(metrics: Mapping[str, Any]) -> str:
    """Describe a sampling: one line, and a table of the scores if it was evaluated.

    Args:
        metrics: as `write_samples` returns them.
    """
    temperature = f"at temperature {metrics['temperature']:g}"
    if "completed" in metrics:
        position = f"position {metrics['position']:.2f}"
        return (
            f"{metrics['samples']} inpainted images of {metrics['completed']}, {position}, "
            f"{temperature}"
        )
    nats = f"{metrics['nats_per_code_samples']:.3f} nats per code"
    line = f"{metrics['samples']} samples {temperature}, {nats}"
    for name, slopes in metrics.get("condition_slopes", {}).items():
        return f"{line}; change of a slice with {name}, 95 % intervals\n{_slope_table(slopes)}"
    if "frechet_distance" not in metrics:
        return line
    rows = [
        (label, *(format_interval(metrics, f"{name}{end}", 4) for end in ("", "_real")))
        for name, label in MEASURES.items()
    ]
    table = format_table([(None, "samples", "real"), *rows], "<>")
    return f"{line}; real: real slices at the same positions; 95 % intervals\n{table}"


def _slope_table(slopes):
    rows = [
        (
            name.replace("_", " "),
            *(format_interval(slope, key, 5) for key in ("slope", "slope_real")),
        )
        for name, slope in slopes.items()
    ]
    return format_table([(None, "samples", "real subjects"), *rows], "<>")
