"""The slice archive: one folder with the pixels, the index and the facts of a set of brain slices.

`slices.npy` holds uint8 pixels of shape (slices, rows, cols), read through a memory map;
`index.csv` says of each slice who, which split, how high in the head and from which file;
`archive.json` holds the counts, the crop box, the intensity rule and the content hash.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np

from brainslices.errors import InputError
from brainslices.runs import atomic_folder

__all__ = [
    "FOREGROUND_THRESHOLD",
    "SPLITS",
    "CropBox",
    "SliceArchive",
    "SliceRecord",
    "check_writable",
    "split_name",
    "write_archive",
]

SPLITS = ("train", "validate", "test")
FOREGROUND_THRESHOLD = 0.02  # of full scale; the metrics' foreground and the crop use the same
FORMAT_VERSION = 1
FILES = {"slices.npy", "index.csv", "archive.json"}
POSITION_RULE = (
    "0 = lowest slice, 1 = highest: K / (largest K of the source) for numbered pictures, "
    "the fraction of the head's height for volumes"
)
_SPLIT_ALIASES = {"training": "train", "validation": "validate", "val": "validate"}


def split_name(name: str) -> str:
    """The archive's word for a split: `val` and `validation` are `validate`.

    Raises:
        InputError: for any other word that is no split.
    """
    known = _SPLIT_ALIASES.get(name.lower(), name.lower())
    if known not in SPLITS:
        raise InputError(f"A split must be one of {', '.join(SPLITS)}. Received: split={name!r}.")
    return known


@dataclass(frozen=True)
class CropBox:
    """A window of a picture, in pixels; it may overhang the picture.

    Args:
        top: first row, negative where the box begins above the picture.
        left: first column, likewise.
        rows: height.
        cols: width.
    """

    top: int
    left: int
    rows: int
    cols: int

    def cut(self, images: np.ndarray) -> np.ndarray:
        """Cuts the box out of pictures; what lies outside them is zero.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels).

        Returns:
            New array of the same type and rank, of the box's rows and cols.
        """
        picture, box = self.windows(images.shape[1:3])
        cut = np.zeros((len(images), self.rows, self.cols, *images.shape[3:]), images.dtype)
        cut[box] = images[picture]
        return cut

    def paste(self, images: np.ndarray, source_shape: tuple[int, int]) -> np.ndarray:
        """Puts cut pictures back where they came from, zeros around them: the inverse of `cut`.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels), rows and cols
                those of the box.
            source_shape: rows and cols of the pictures the box was cut from.

        Returns:
            New array of the same type and rank, of the source's rows and cols.
        """
        if images.shape[1:3] != (self.rows, self.cols):
            raise InputError(
                f"Pictures to paste must have the crop box's shape ({self.rows}, {self.cols}). "
                f"Received: images.shape={images.shape}."
            )
        picture, box = self.windows(source_shape)
        pasted = np.zeros((len(images), *source_shape, *images.shape[3:]), images.dtype)
        pasted[picture] = images[box]
        return pasted

    def windows(self, shape: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where pictures and box meet: indices (all, rows, cols) into pictures and into cuts.

        Args:
            shape: rows and cols of the pictures.
        """
        picture, box = [slice(None)], [slice(None)]
        spans = (self.top, self.rows, shape[0]), (self.left, self.cols, shape[1])
        for start, length, size in spans:
            low, high = max(start, 0), max(min(start + length, size), max(start, 0))
            picture.append(slice(low, high))
            box.append(slice(low - start, high - start))
        return tuple(picture), tuple(box)


@dataclass(frozen=True)
class SliceRecord:
    """One row of the index.

    Args:
        slice_id: unique name of the slice.
        subject: whose head it is; all slices of a subject lie in one split.
        split: `train`, `validate` or `test`.
        position: height in the head in [0, 1], 0 = lowest, 1 = highest.
        source: the file it was read from.
    """

    slice_id: str
    subject: str
    split: str
    position: float
    source: str


@dataclass(frozen=True)
class SliceArchive:
    """An opened archive; no pixel is read before `images` or `load` asks for it.

    Args:
        path: the archive's folder.
        index: a `SliceRecord` for each row of `images`.
        image_shape: rows and cols of every picture.
        crop: bounding box of the training content, sides rounded up to the grid's multiple.
        intensity_rule: in words, how source intensities became 0..255.
        content_hash: sha256, hexadecimal, over pixels and index.
    """

    path: Path
    index: list[SliceRecord]
    image_shape: tuple[int, int]
    crop: CropBox
    intensity_rule: str
    content_hash: str

    @classmethod
    def open(cls, folder: str | Path) -> "SliceArchive":
        """Reads `archive.json` and `index.csv`, no pixels.

        Raises:
            InputError: if there is no archive, or it is damaged or of another format version.
        """
        folder = Path(folder)
        facts = _read_facts(folder)
        index = _read_index(folder / "index.csv")
        if _counts(index) != facts["counts"]:
            raise _damaged(folder / "index.csv", f"it lists {len(index)} slices, not as counted")
        return cls(
            path=folder,
            index=index,
            image_shape=facts["image_shape"],
            crop=facts["crop"],
            intensity_rule=facts["intensity_rule"],
            content_hash=facts["content_hash"],
        )

    @property
    def images(self) -> np.ndarray:
        """Read-only memory map, uint8 of shape (slices, rows, cols).

        Opened anew each time: pages that one map has read stay resident as long as it lives, and a
        training would end with the whole archive in memory.
        """
        path, shape = self.path / "slices.npy", (len(self.index), *self.image_shape)
        try:
            images = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, str(error)) from error
        if images.shape != shape or images.dtype != np.uint8:
            raise _damaged(path, f"it holds {images.dtype} {images.shape}, expected uint8 {shape}")
        return images

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of `subjects` and `slices` in each split."""
        return _counts(self.index)

    def rows_of(self, split: str) -> np.ndarray:
        """Row numbers, int64, of the slices of a split.

        Raises:
            InputError: if the split is unknown or empty.
        """
        split = split_name(split)
        rows = [row for row, record in enumerate(self.index) if record.split == split]
        if not rows:
            filled = ", ".join(name for name in SPLITS if self.counts[name]["slices"])
            raise InputError(
                f"The archive {self.path} has no slices in its split {split!r}, only in: {filled}. "
                "Make it anew with more subjects or other fractions, or ask for another split."
            )
        return np.array(rows, np.int64)

    def load(self, rows: np.ndarray) -> np.ndarray:
        """Pictures of the rows, float32 of shape (n, rows, cols, 1), intensities in [0, 1]."""
        return (self.images[rows] / np.float32(255))[..., np.newaxis]


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
    index, seen, brightest = [], _Seen(), {}
    # A plain file, not a memory map: on a full disk a write raises, a map kills the process.
    with path.open("wb") as file:
        for record, image in slices:
            seen.add(record, image)
            if not index:
                _write_header(file, (0, *image.shape))
            record = replace(record, position=float(record.position))  # NumPy's repr is no number
            peak = brightest.setdefault(record.split, np.zeros_like(image))
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
        "crop": asdict(_content_box(brightest, grid_multiple)),
        "position_rule": POSITION_RULE,
    }
    return facts, index


def _write_header(file: io.BufferedWriter, shape: tuple[int, ...]) -> None:
    # NumPy pads the header for a growing first axis, so its length does not depend on it.
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


class _Seen:
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


def _content_box(brightest: dict[str, np.ndarray], multiple: int) -> CropBox:
    """Bounding box of the training content (of all, where nothing is for training)."""
    peak = brightest.get("train", np.max(list(brightest.values()), axis=0))
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


def _counts(index: list[SliceRecord]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        subjects = [record.subject for record in index if record.split == split]
        counts[split] = {"subjects": len(set(subjects)), "slices": len(subjects)}
    return counts


def _index_text(index: list[SliceRecord]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(SliceRecord))
    writer.writerows(astuple(record) for record in index)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _read_index(path: Path) -> list[SliceRecord]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if header != [field.name for field in fields(SliceRecord)]:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [SliceRecord(*row[:3], float(row[3]), row[4]) for row in rows]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise _damaged(path, str(error)) from error


def _read_facts(folder: Path) -> dict:
    path = folder / "archive.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no slice archive: it has no archive.json. Make one with "
            f"`python scripts/prepare_data.py --source PATH --out FOLDER`, and give that FOLDER."
        )
    try:
        facts = json.loads(path.read_text("utf-8"))
        version = facts["format_version"]
        if version == FORMAT_VERSION:
            missing = {"counts", "image_shape", "crop", "intensity_rule", "content_hash"}
            missing -= set(facts)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            rows, cols = facts["image_shape"]
            facts["image_shape"] = (int(rows), int(cols))
            facts["crop"] = CropBox(**facts["crop"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"cannot be read ({error!r})") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}. Make the "
            "archive anew with scripts/prepare_data.py."
        )
    return facts


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged: {reason}. Make the archive anew with scripts/prepare_data.py."
    )
