"""The dataset that evaluation reads: a split of an archive, or a folder of images."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainslices.data.archive import SliceArchive, SliceRecord
from brainslices.data.archive_writer import check_names
from brainslices.data.discovery import describe_excluded, find_files
from brainslices.data.file_selection import FileSelection
from brainslices.data.images import read_image
from brainslices.data.metadata import slice_records
from brainslices.data.sources import LABEL_REASONS, read_source
from brainslices.data.splits import normalize_split
from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["Slices", "open_slices"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slices(Sequence[np.ndarray]):
    """A sequence of float32 images of shape (rows, cols) in [0, 1], read on access.

    Args:
        path: the archive or the folder of images.
        records: a `SliceRecord` for each slice. In a folder the position is NaN for images for
            which no table states one: the range of their numbers is no range of positions.
        read: row number -> image, uint8 of shape (rows, cols).
        split: the split of the slices, or None if the data has no splits.
        archive_hash: content hash of the archive, or None for a folder of images.
    """

    path: Path
    records: list[SliceRecord]
    read: Callable[[int], np.ndarray]
    split: str | None
    archive_hash: str | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.read(row) / np.float32(255)

    @property
    def subjects(self) -> list[str]:
        """Subject of each slice."""
        return [record.subject for record in self.records]

    @property
    def positions(self) -> np.ndarray:
        """Slice positions, float32 array of shape (slices,), in [0, 1] or NaN."""
        return np.array([record.position for record in self.records], "float32")

    def check_shape(self, image_shape: tuple[int, int], run: Path) -> None:
        """Read every image once, so that a bad one stops the work before it starts.

        Args:
            image_shape: (rows, cols) that the model takes.
            run: folder of the model, for the message.

        Raises:
            InputError: if an image cannot be read or has another size.
        """
        for row, record in enumerate(self.records):
            shape = self.read(row).shape
            if shape != image_shape:
                path = self.path if self.archive_hash else self.path / record.source
                raise InputError(
                    f"{path} has {shape[0]} x {shape[1]} pixels (rows x cols), but the model of "
                    f"{run} takes {image_shape[0]} x {image_shape[1]}. Give images of that size, "
                    "or a --run that was trained on the other."
                )


def open_slices(
    data: PathLike, split: str | None = None, selection: FileSelection | None = None
) -> Slices:
    """Open one split of an archive, or the images of a folder.

    Args:
        data: a slice archive; or a folder of greyscale images (or one image). Images whose names
            have no subject are subjects of their own.
        split: the split; None is `test` if the data has splits, else all images.
        selection: which images of a folder, and how they are named; not for an archive.

    Raises:
        InputError: if there is no such data or no such split.
    """
    data = Path(data)
    if not (data / "archive.json").exists():
        return _open_folder(data, split, selection or FileSelection())
    if selection not in (None, FileSelection()):
        raise InputError(
            f"The flags that select files apply to a folder of images. Received: {data}, which is "
            "a slice archive. Leave them out."
        )
    archive = SliceArchive.open(data)
    split = normalize_split(split or "test")
    rows = archive.indices(split)
    return Slices(
        path=data,
        records=[archive.index[row] for row in rows],
        read=lambda row: archive.images[rows[row]],
        split=split,
        archive_hash=archive.content_hash,
    )


def _open_folder(data: Path, split: str | None, selection: FileSelection) -> Slices:
    files = find_files(data, selection)
    if files.kind == "volume":
        raise InputError(
            f"{data} holds volumes. Prepare a slice archive from them first: "
            f"python scripts/prepare_data.py --source {data} --out DIR."
        )
    files, metadata = read_source(files, selection, require_subject=False)
    label_maps = {name: files.excluded[name] for name in LABEL_REASONS if name in files.excluded}
    for line in describe_excluded(label_maps, files.root):
        logger.warning("Left out: %s. --label-maps reads them all the same.", line)
    stated = {item.source: item.position for item in metadata if item.position is not None}
    records = [
        replace(record, position=stated.get(record.source, math.nan))
        for record in slice_records(metadata)
    ]
    for record in records:
        check_names(record)
    splits = sorted({record.split for record in records if record.split})
    if splits:
        split = normalize_split(split or "test")
        records = [record for record in records if record.split == split]
        if not records:
            raise InputError(
                f"`split` must be a split that has images in {data}: {', '.join(splits)}. "
                f"Received: split={split!r}."
            )
    elif split is not None:
        raise InputError(
            f"`split` needs sub-folders of {data} named after splits. Received: split={split!r}. "
            "Leave --split out to take all images."
        )
    return Slices(
        path=files.root,
        records=records,
        read=lambda row: read_image(files.root / records[row].source),
        split=split,
        archive_hash=None,
    )
