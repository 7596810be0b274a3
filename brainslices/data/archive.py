"""Slice archive: a folder with the pixels, the index and the metadata of brain slices.

`slices.npy` holds uint8 pixels of shape (slices, rows, cols), read through a memory map;
`index.csv` gives the subject, split, position and source file of each slice;
`subjects.csv`, if there is one, what is known of each subject;
`archive.json` holds the counts, the crop box, the intensity rule and the content hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from brainslices import schema
from brainslices.csv_files import read_rows
from brainslices.data.crop import CropBox
from brainslices.data.splits import SPLITS, normalize_split
from brainslices.data.subject_table import SubjectTable, load_subjects
from brainslices.errors import CorruptFileError, InputError
from brainslices.reading import reading
from brainslices.runs.arrays import read_array
from brainslices.runs.json_files import read_json
from brainslices.types import PathLike

__all__ = [
    "FOREGROUND_THRESHOLD",
    "FORMAT_VERSION",
    "SPLITS",
    "SliceArchive",
    "SliceRecord",
    "count_splits",
]

FOREGROUND_THRESHOLD = 0.02  # of full scale; the metrics' foreground and the crop share it
FORMAT_VERSION = 1
_REPAIR = "Prepare the archive again with scripts/prepare_data.py."
_METADATA = {
    "counts": schema.COUNTS,
    "image_shape": schema.SHAPE,
    "crop": schema.OBJECT,
    "intensity_rule": schema.STRING,
    "content_hash": schema.SHA256,
}
_CROP_BOX = {
    "top": schema.INTEGER,
    "left": schema.INTEGER,
    "rows": schema.SIDE,
    "cols": schema.SIDE,
}


@dataclass(frozen=True)
class SliceRecord:
    """One row of the index.

    Args:
        slice_id: unique name of the slice.
        subject: subject identifier; all slices of a subject are in one split.
        split: `train`, `validate` or `test`.
        position: slice position in [0, 1], 0 = lowest, 1 = highest.
        source: file that the slice was read from.
    """

    slice_id: str
    subject: str
    split: str
    position: float
    source: str


@dataclass(frozen=True)
class SliceArchive:
    """An opened archive. Opening reads no pixels; `images` and `load` do.

    Args:
        path: folder of the archive.
        index: a `SliceRecord` for each row of `images`.
        image_shape: (rows, cols) of every image.
        crop: bounding box of the training content, sides rounded up to the grid's multiple.
        intensity_rule: how source intensities were mapped to 0..255, in words.
        content_hash: sha256, hexadecimal, over pixels and index.
        identity: inode and time of change of `archive.json`, by which a replacement is noticed.
    """

    path: Path
    index: list[SliceRecord]
    image_shape: tuple[int, int]
    crop: CropBox
    intensity_rule: str
    content_hash: str
    identity: tuple[int, int] | None = None

    @classmethod
    def open(cls, folder: PathLike) -> "SliceArchive":
        """Read `archive.json` and `index.csv`.

        Raises:
            InputError: if there is no archive, or it is corrupt or of another format version.
        """
        folder = Path(folder)
        identity = _identity(folder)
        metadata = _read_metadata(folder)
        index = _read_index(folder / "index.csv")
        if count_splits(index) != metadata.pop("counts"):
            raise CorruptFileError(
                f"{folder / 'index.csv'} is corrupt: its {len(index)} slices do not match the "
                f"counts in archive.json. {_REPAIR}"
            )
        return cls(path=folder, index=index, identity=identity, **metadata)

    @property
    def images(self) -> np.ndarray:
        """Read-only memory map, uint8 of shape (slices, rows, cols).

        Each access opens a new map: pages that a map has read stay resident as long as it lives,
        so that a training with one map would end with the whole archive in memory.

        Raises:
            InputError: if `slices.npy` is missing, corrupt or of another shape, or the archive was
                replaced after it was opened.
        """
        path, shape = self.path / "slices.npy", (len(self.index), *self.image_shape)
        with reading(path, "array of pixels", _REPAIR):
            images = read_array(path)
            if images.shape != shape or images.dtype != np.uint8:
                raise ValueError(f"it holds {images.dtype} {images.shape}, expected uint8 {shape}")
        self._check_not_replaced()
        return images

    def _check_not_replaced(self):
        if _identity(self.path) == self.identity:
            return
        if _read_metadata(self.path)["content_hash"] != self.content_hash:
            raise InputError(
                f"The archive {self.path} was replaced by another one after this command had "
                "opened it. Run the command again, or prepare the other archive into a new --out."
            )

    @property
    def subjects(self) -> SubjectTable:
        """What is known of each subject, from `subjects.csv`; empty if the archive has none."""
        return load_subjects(self.path)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of `subjects` and `slices` in each split."""
        return count_splits(self.index)

    def indices(self, split: str) -> np.ndarray:
        """Return the row numbers, int64 of shape (n,), of the slices of a split.

        Raises:
            InputError: if the split is unknown or empty.
        """
        split = normalize_split(split)
        rows = [row for row, record in enumerate(self.index) if record.split == split]
        if not rows:
            filled = ", ".join(name for name in SPLITS if self.counts[name]["slices"])
            raise InputError(
                f"`split` must be a split that has slices in {self.path}: {filled}. Received: "
                f"split={split!r}. Choose one of them, or prepare the archive again with more "
                "subjects or other --fractions."
            )
        return np.array(rows, np.int64)

    def load(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Load images by row number.

        Args:
            rows: int array of shape (n,), row numbers in `index`.

        Returns:
            float32 array of shape (n, rows, cols, 1), intensities in [0, 1].
        """
        return (self.images[rows] / np.float32(255))[..., np.newaxis]


def count_splits(index: Sequence[SliceRecord]) -> dict[str, dict[str, int]]:
    """Count the `subjects` and `slices` of each split."""
    counts = {}
    for split in SPLITS:
        subjects = [record.subject for record in index if record.split == split]
        counts[split] = {"subjects": len(set(subjects)), "slices": len(subjects)}
    return counts


def _read_index(path: Path) -> list[SliceRecord]:
    columns, index = [field.name for field in fields(SliceRecord)], []
    with reading(path, "slice index", _REPAIR):
        for line, row in read_rows(path).items():
            if list(row) != columns:
                raise ValueError(f"its columns are {', '.join(row)}")
            position = float(row["position"])
            if row["split"] not in SPLITS or not 0 <= position <= 1:
                raise ValueError(
                    f"line {line} must have a split of {', '.join(SPLITS)} and a position in "
                    f"[0, 1]. Received: split={row['split']!r}, position={position}"
                )
            index.append(
                SliceRecord(row["slice_id"], row["subject"], row["split"], position, row["source"])
            )
    return index


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = (folder / "archive.json").stat()
    except OSError:  # reported when it is read
        return None
    return status.st_ino, status.st_mtime_ns


def _read_metadata(folder: Path) -> dict:
    path = folder / "archive.json"
    if not path.exists():
        raise InputError(
            f"{folder} is not a slice archive: it has no archive.json. Prepare one with "
            "`python scripts/prepare_data.py --source PATH --out FOLDER`, then pass that FOLDER."
        )
    stored = read_json(path, {"format_version": schema.INTEGER}, hint=_REPAIR)
    if (version := stored["format_version"]) != FORMAT_VERSION:
        raise InputError(
            f"{path} must have format version {FORMAT_VERSION}. Received: "
            f"format_version={version}. {_REPAIR}"
        )
    with reading(path, "archive description", _REPAIR):
        metadata = schema.check_fields(stored, _METADATA)
        metadata["image_shape"] = tuple(metadata["image_shape"])
        metadata["crop"] = _crop_box(metadata["crop"], metadata["image_shape"])
    return metadata


def _crop_box(stored: dict, image_shape: tuple[int, int]) -> CropBox:
    crop = CropBox(**schema.check_fields(stored, _CROP_BOX))
    window, _ = crop.windows(image_shape)
    if any(side.start >= side.stop for side in window[1:]):
        raise ValueError(f"`crop` must overlap images of {image_shape}. Received: {crop}")
    return crop
