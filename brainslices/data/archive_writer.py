"""Write a slice archive from a stream of slices, validated one by one."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path

import numpy as np

from brainslices.data.archive import (
    FOREGROUND_THRESHOLD,
    FORMAT_VERSION,
    SPLITS,
    SliceArchive,
    SliceRecord,
    _counts,
)
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_folder

__all__ = ["check_writable", "write_archive"]
FILES = {"slices.npy", "index.csv", "archive.json"}
POSITION_RULE = (
    "0 = lowest slice, 1 = highest: K / (largest K of the source) for numbered pictures, "
    "the fraction of the head's height for volumes"
)


def write_archive(
    folder: str | Path,
    slices: Iterable[tuple[SliceRecord, np.ndarray]],
    *,
    intensity_rule: str,
    grid_multiple: int = 8,
    overwrite: bool = False,
) -> SliceArchive:
    """Writes an archive from a stream of slices, holding one of them at a time.

    The folder appears complete or not at all: it is built beside its place and then renamed.

    Args:
        folder: the archive to make; its parents are made too.
        slices: pairs of a record and its picture, uint8 of shape (rows, cols).
        intensity_rule: in words, how source intensities became 0..255.
        grid_multiple: the crop's sides are multiples of this, so that a model's
            downsampling divides them.
        overwrite: replaces an archive that is already there.

    Returns:
        The archive, opened.

    Raises:
        InputError: if `slices` is empty, mixes sizes, repeats an id, shows a subject in two
            splits or nothing but black, or if the folder is taken.
    """
    folder = Path(folder).resolve()
    check_writable(folder, overwrite=overwrite)
    with atomic_folder(folder) as partial:
        digest = hashlib.sha256()
        facts, index = _write_pixels(partial / "slices.npy", slices, grid_multiple, digest)
        text = _index_text(index)
        (partial / "index.csv").write_bytes(text)
        digest.update(text)
        facts |= {"intensity_rule": intensity_rule, "content_hash": digest.hexdigest()}
        (partial / "archive.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return SliceArchive.open(folder)


def check_writable(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuses, before any work, a place where an archive cannot go.

    Raises:
        InputError: if it is a file, another folder with something in it, or an archive and
            `overwrite` is false.
    """
    folder = Path(folder)
    if folder.is_dir():
        found = {item.name for item in folder.iterdir()}
        is_archive = "archive.json" in found
        others = sorted(found - FILES if is_archive else found)
        if others:
            raise InputError(
                f"{folder} holds other things than a slice archive ({', '.join(others[:3])}). Give "
                "a new folder."
            )
        if is_archive and not overwrite:
            raise InputError(
                f"{folder} already holds a slice archive. Give another folder, or --overwrite "
                "to replace it."
            )
    elif folder.exists():
        raise InputError(f"{folder} is a file; a slice archive is a folder. Give a new folder.")


def _write_pixels(
    path: Path, slices: Iterable[tuple[SliceRecord, np.ndarray]], grid_multiple: int, digest
) -> tuple[dict, list[SliceRecord]]:
    """Streams the pixels; returns the facts for `archive.json` and the index."""
    index, seen, max_projection = [], _SliceValidator(), {}
    # A plain file, not a memory map: on a full disk a write raises, a map kills the process.
    with path.open("wb") as file:
        for record, image in slices:
            seen.add(record, image)
            if not index:
                _write_header(file, (0, *image.shape))
            record = replace(record, position=float(record.position))  # NumPy's repr is no number
            peak = max_projection.setdefault(record.split, np.zeros_like(image))
            np.maximum(peak, image, out=peak)
            pixels = np.ascontiguousarray(image).data
            digest.update(pixels)
            file.write(pixels)
            index.append(record)
        if not index:
            raise InputError("A slice archive needs at least one slice. Received: none.")
        file.seek(0)
        _write_header(file, (len(index), *seen.shape))
    facts = {
        "format_version": FORMAT_VERSION,
        "counts": _counts(index),
        "image_shape": list(seen.shape),
        "crop": asdict(_content_box(max_projection, grid_multiple)),
        "position_rule": POSITION_RULE,
    }
    return facts, index


def _write_header(file: io.BufferedWriter, shape: tuple[int, ...]) -> None:
    # NumPy pads the header for a growing first axis, so its length does not depend on it.
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


class _SliceValidator:
    """What the slices so far bind the next one to."""

    def __init__(self):
        self.shape = None
        self.first = None
        self.split_of = {}
        self.source_of = {}

    def add(self, record: SliceRecord, image: np.ndarray) -> None:
        if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"A slice must be uint8 of shape (rows, cols). Received: {record.source} as "
                f"{image.dtype} {image.shape}."
            )
        if record.split not in SPLITS or not 0 <= record.position <= 1:
            raise InputError(
                f"A slice needs a split of {', '.join(SPLITS)} and a position in [0, 1]. "
                f"Received: {record}."
            )
        self.first = self.first or record
        self.shape = self.shape or image.shape
        if image.shape != self.shape:
            raise InputError(
                f"All pictures must have one size. {self.first.source} has "
                f"{self.shape[0]} x {self.shape[1]} (rows x cols) but {record.source} has "
                f"{image.shape[0]} x {image.shape[1]}. Resize or remove it."
            )
        if record.slice_id in self.source_of:
            raise InputError(
                f"Slice id {record.slice_id!r} comes twice: from "
                f"{self.source_of[record.slice_id]} and from {record.source}. Remove one of them."
            )
        self.source_of[record.slice_id] = record.source
        split, source = self.split_of.setdefault(record.subject, (record.split, record.source))
        if split != record.split:
            raise InputError(
                f"Subject {record.subject!r} is in two splits: in {split!r} by {source} and in "
                f"{record.split!r} by {record.source}. Keep each subject in one split."
            )


def _content_box(max_projection: dict[str, np.ndarray], multiple: int) -> CropBox:
    """Bounding box of the training content (of all, where nothing is for training)."""
    peak = max_projection.get("train", np.max(list(max_projection.values()), axis=0))
    content = peak > FOREGROUND_THRESHOLD * 255
    if not content.any():
        raise InputError("The training slices are black all over: there is nothing to learn from.")
    spans = []
    for axis in (1, 0):
        inside = np.flatnonzero(content.any(axis=axis))
        low, high, size = inside[0], inside[-1] + 1, content.shape[1 - axis]
        length = -(-(high - low) // multiple) * multiple
        start = low - (length - (high - low)) // 2
        # Inside the picture where it fits, else evenly over both edges.
        start = min(max(start, 0), size - length) if length <= size else (size - length) // 2
        spans.append((int(start), int(length)))
    (top, rows), (left, cols) = spans
    return CropBox(top, left, rows, cols)


def _index_text(index: list[SliceRecord]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(SliceRecord))
    writer.writerows(astuple(record) for record in index)
    return text.getvalue().encode("utf-8", "backslashreplace")
