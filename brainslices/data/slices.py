"""One view of slices to evaluate: a split of an archive, or a folder of images."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainslices.data.archive import SliceArchive, SliceRecord, split_name
from brainslices.data.discovery import find_files, image_records
from brainslices.data.images import read_image
from brainslices.errors import InputError

__all__ = ["Slices", "open_slices"]


@dataclass(frozen=True)
class Slices(Sequence):
    """The originals, a sequence of float32 pictures (rows, cols) in [0, 1] read when asked for.

    Args:
        path: the archive or the folder they come from.
        records: who, where and from which file, one a slice.
        read: row number -> picture, uint8 of shape (rows, cols).
        split: their split, or None where the data has none.
        archive_hash: the archive's content hash, or None for a folder of pictures.
    """

    path: Path
    records: list[SliceRecord]
    read: Callable[[int], np.ndarray]
    split: str | None
    archive_hash: str | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.read(row) / np.float32(255)

    @property
    def subjects(self) -> list[str]:
        """Subject of each slice."""
        return [record.subject for record in self.records]


def open_slices(data: Path, split: str | None = None) -> Slices:
    """Open one split of an archive, or the pictures of a folder.

    Args:
        data: a slice archive; or a folder of grey pictures (or a single one), whose subjects and
            positions are told by the file names and whose splits by its sub-folders.
        split: the split wanted; None takes `test` where the data has splits, else all pictures.

    Raises:
        InputError: if there is nothing of the kind.
    """
    data = Path(data)
    if not (data / "archive.json").exists():
        return _open_folder(data, split)
    archive = SliceArchive.open(data)
    rows = archive.indices(split or "test")
    return Slices(
        path=data,
        records=[archive.index[row] for row in rows],
        read=lambda row: archive.images[rows[row]],
        split=split_name(split or "test"),
        archive_hash=archive.content_hash,
    )


def _open_folder(data, split):
    files, are_volumes = find_files(data)
    if are_volumes:
        raise InputError(
            f"{data} holds volumes. Make a slice archive of them first: "
            f"python scripts/prepare_data.py --source {data} --out DIR."
        )
    root = data.parent if data.is_file() else data
    records = image_records(files, root, fractions=(1, 0, 0))
    # Splits that stay when subjects are dealt otherwise are those of the sub-folders.
    if records == image_records(files, root, fractions=(0, 0, 1)):
        offered = sorted({record.split for record in records})
        split = split_name(split or "test")
        records = [record for record in records if record.split == split]
        if not records:
            raise InputError(
                f"{data} has no pictures in the split {split!r}, only in: {', '.join(offered)}. "
                "Give one of those as --split."
            )
    elif split is not None:
        raise InputError(
            f"{data} has no sub-folders named after splits. Leave --split out to take all of its "
            f"pictures. Received: split={split!r}."
        )
    else:
        records = [dataclasses.replace(record, split="") for record in records]
    return Slices(
        path=root,
        records=records,
        read=lambda row: read_image(root / records[row].source),
        split=split,
        archive_hash=None,
    )
