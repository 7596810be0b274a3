"""The slice archive: one folder with the pixels, the index and the facts of a set of brain slices.

`slices.npy` holds uint8 pixels of shape (slices, rows, cols), read through a memory map;
`index.csv` says of each slice who, which split, how high in the head and from which file;
`archive.json` holds the counts, the crop box, the intensity rule and the content hash.
"""

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from brainslices.data.crop import CropBox
from brainslices.errors import InputError

__all__ = ["FOREGROUND_THRESHOLD", "SPLITS", "SliceArchive", "SliceRecord", "split_name"]

SPLITS = ("train", "validate", "test")
FOREGROUND_THRESHOLD = 0.02  # of full scale; the metrics' foreground and the crop use the same
FORMAT_VERSION = 1
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

    def indices(self, split: str) -> np.ndarray:
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


def _counts(index: list[SliceRecord]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        subjects = [record.subject for record in index if record.split == split]
        counts[split] = {"subjects": len(set(subjects)), "slices": len(subjects)}
    return counts


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
