"""Write a slice archive from a stream of slices, validated one by one."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainslices.data.archive import (
    FOREGROUND_THRESHOLD,
    FORMAT_VERSION,
    SliceArchive,
    SliceRecord,
    count_splits,
)
from brainslices.data.crop import CropBox
from brainslices.data.splits import SPLITS, check_subject_splits
from brainslices.data.subject_table import SubjectTable, save_subjects, select_subjects
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.types import PathLike

__all__ = ["check_names", "check_writable", "write_archive"]

ARCHIVE_FILES = ("slices.npy", "index.csv", "subjects.csv", "archive.json")
POSITION_RULE = (
    "0 = lowest slice, 1 = highest: (K - smallest K) / (largest K - smallest K) of the source for "
    "numbered images, "
    "the fraction of the head's height for volumes"
)


def write_archive(
    folder: PathLike,
    slices: Iterable[tuple[SliceRecord, np.ndarray]],
    *,
    intensity_rule: str,
    subjects: SubjectTable | None = None,
    grid_multiple: int = 8,
    overwrite: bool = False,
) -> SliceArchive:
    """Write an archive from a stream of slices, with one of them in memory at a time.

    The write is atomic. The crop is of the training content, or of all if nothing is for training.

    Args:
        folder: folder of the archive; created with its parents if missing.
        slices: pairs of a record and its image, uint8 of shape (rows, cols).
        intensity_rule: how source intensities were mapped to 0..255, in words.
        subjects: what is known of each subject, kept as `subjects.csv`; rows of others are left
            out.
        grid_multiple: the sides of the crop are multiples of this, so that downsampling divides it.
        overwrite: replace an existing archive.

    Returns:
        The archive, opened.

    Raises:
        InputError: if `slices` is empty, has several image sizes, a repeated id or a subject in
            two splits, if all slices of a subject are black, if `subjects` names none of them, or
            if `folder` cannot be written.
    """
    folder = Path(folder).resolve()
    check_writable(folder, overwrite=overwrite)
    with atomic_folder(folder) as partial:
        digest = hashlib.sha256()
        index, max_projections = _write_pixels(partial / "slices.npy", slices, digest.update)
        _write_index(partial / "index.csv", index, digest.update)
        if subjects:
            known, _ = select_subjects(subjects, (record.subject for record in index))
            save_subjects(partial / "subjects.csv", known)
        metadata = _metadata(index, max_projections, grid_multiple)
        metadata |= {"intensity_rule": intensity_rule, "content_hash": digest.hexdigest()}
        (partial / "archive.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
        _ = SliceArchive.open(partial).images  # what cannot be read replaces nothing
    return SliceArchive.open(folder)


def _metadata(
    index: list[SliceRecord], max_projections: dict[str, np.ndarray], grid_multiple: int
) -> dict[str, Any]:
    """Describe the slices for `archive.json`; the crop is of the training content."""
    content = max_projections.get("train", np.max(list(max_projections.values()), axis=0))
    return {
        "format_version": FORMAT_VERSION,
        "counts": count_splits(index),
        "image_shape": list(content.shape),
        "crop": asdict(_content_box(content, grid_multiple)),
        "position_rule": POSITION_RULE,
    }


def check_writable(folder: PathLike, *, overwrite: bool = False) -> None:
    """Check, before any work, that an archive can be written to a folder.

    Raises:
        InputError: if `folder` is a file or holds other files, or if it is an archive and
            `overwrite` is false.
    """
    exists = check_output_dir(folder, ARCHIVE_FILES, "slice archive", marker="archive.json")
    if exists and not overwrite:
        raise InputError(
            f"{folder} already holds a slice archive. Give another folder as --out, or pass "
            "--overwrite to replace it."
        )


def _write_pixels(
    path: Path,
    slices: Iterable[tuple[SliceRecord, np.ndarray]],
    update_hash: Callable[[bytes | memoryview], None],
) -> tuple[list[SliceRecord], dict[str, np.ndarray]]:
    """Stream the pixels to `path`; return the index and each split's maximum projection."""
    index: list[SliceRecord] = []
    source_of: dict[str, str] = {}
    max_projections: dict[str, np.ndarray] = {}
    peaks: dict[str, int] = {}  # subject -> largest pixel
    first = None
    # A plain file instead of a memory map: on a full disk a write raises, but a memory map kills
    # the process.
    with path.open("wb") as file:
        for record, image in slices:
            if first is None:
                first = record, image
                _write_header(file, (0, *image.shape))
            _check_slice(record, image, first)
            if record.slice_id in source_of:
                raise InputError(
                    f"Slice id {record.slice_id!r} occurs twice: from "
                    f"{source_of[record.slice_id]} and from {record.source}. Remove one of them."
                )
            source_of[record.slice_id] = record.source
            # Plain floats: the repr of a NumPy float cannot be parsed in index.csv.
            index.append(replace(record, position=float(record.position)))
            projection = max_projections.setdefault(record.split, np.zeros_like(image))
            np.maximum(projection, image, out=projection)
            peaks[record.subject] = max(peaks.get(record.subject, 0), int(image.max()))
            pixels = np.ascontiguousarray(image).data
            update_hash(pixels)
            file.write(pixels)
        if first is None:
            raise InputError("`slices` must hold at least one slice. Received: none.")
        check_subject_splits(index)
        _check_not_black(index, peaks)
        file.seek(0)
        _write_header(file, (len(index), *first[1].shape))
    return index, max_projections


def _check_not_black(index: list[SliceRecord], peaks: dict[str, int]) -> None:
    """Refuse subjects of whom no slice has foreground."""
    black = [name for name, value in peaks.items() if value <= FOREGROUND_THRESHOLD * 255]
    if not black:
        return
    if len(black) == len(peaks):
        raise InputError("All slices are black: there is nothing to train on.")
    source = next(record.source for record in index if record.subject == black[0])
    raise InputError(
        f"All slices of {len(black)} subjects are black, e.g. of {black[0]!r} from {source}. Check "
        "the voxel size and the intensities of its files, or leave them out by --exclude."
    )


def _write_header(file: io.BufferedWriter, shape: tuple[int, ...]) -> None:
    # NumPy pads the header for a growing first axis, so its length does not depend on it.
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


def check_names(record: SliceRecord) -> None:
    """Refuse names that neither a terminal nor a figure can show.

    Raises:
        InputError: if the path or the subject has control characters, or is not UTF-8.
    """
    if not all(text.isprintable() for text in (record.slice_id, record.subject, record.source)):
        raise InputError(
            "The path of a file and its subject must be UTF-8 text and must not have control "
            f"characters. Received: {record.source!r}, subject {record.subject!r}. Rename it."
        )


def _check_slice(record: SliceRecord, image: np.ndarray, first: tuple) -> None:
    """Check a slice by itself and against the first record and image."""
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"A slice must be uint8 of shape (rows, cols). Received: {record.source} as "
            f"{image.dtype} {image.shape}."
        )
    check_names(record)
    if record.split not in SPLITS or not 0 <= record.position <= 1:
        raise InputError(
            f"A slice must have a split of {', '.join(SPLITS)} and a position in [0, 1]. "
            f"Received: {record}."
        )
    first_record, first_image = first
    if image.shape != first_image.shape:
        sizes = "{} has {} x {} (rows x cols), but {} has {} x {}".format(
            first_record.source, *first_image.shape, record.source, *image.shape
        )
        raise InputError(f"All images must have the same size. {sizes}. Resize or remove it.")


def _content_box(max_projection: np.ndarray, multiple: int) -> CropBox:
    """Bounding box of the content, sides rounded up to the multiple."""
    content = max_projection > FOREGROUND_THRESHOLD * 255
    if not content.any():
        raise InputError("All training slices are black: there is nothing to train on.")
    spans = []
    for axis in (1, 0):
        inside = np.flatnonzero(content.any(axis=axis))
        low, high, size = inside[0], inside[-1] + 1, content.shape[1 - axis]
        length = -(-(high - low) // multiple) * multiple
        start = low - (length - (high - low)) // 2
        # Inside the image if it fits, else centred with equal margins on both sides.
        start = min(max(start, 0), size - length) if length <= size else (size - length) // 2
        spans.append((int(start), int(length)))
    (top, rows), (left, cols) = spans
    return CropBox(top, left, rows, cols)


def _write_index(
    path: Path, index: list[SliceRecord], update_hash: Callable[[bytes], None]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(SliceRecord))
    writer.writerows(astuple(record) for record in index)
    content = text.getvalue().encode("utf-8", "backslashreplace")
    update_hash(content)
    path.write_bytes(content)
