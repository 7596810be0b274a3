"""Prepare a slice archive from images, volumes or phantoms."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from brainslices.config import check_field
from brainslices.data.archive import SPLITS, SliceArchive, SliceRecord
from brainslices.data.archive_writer import check_writable, write_archive
from brainslices.data.discovery import (
    VOLUME_PATTERN,
    _Named,
    _named,
    find_files,
    image_records,
    split_subjects,
)
from brainslices.data.images import read_image
from brainslices.errors import InputError
from brainslices.progress import track

__all__ = ["SourceConfig", "make_archive"]
IMAGE_RULE = "8-bit grey values of the pictures, as they are"
PHANTOMS = 64
PHANTOM_RULE = "phantoms, drawn in 0..255"
_READERS, _READ_AHEAD = 4, 32
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


@dataclass(frozen=True)
class SourceConfig:
    """Which slices go into an archive."""

    source: str
    """Folder of pictures or volumes, a single file, or the word `phantom`."""
    out: Path
    """The archive folder to make."""
    pattern: str | None = None
    """Regular expression for paths below the source, with groups `subject` and `slice` (optional).

    By default case_NNN_slice_K; for volumes OAS1_NNNN or sub-NAME, else the file's name."""
    table: Path | None = None
    """CSV of the files to read: columns file, subject; optional split, position (0 to 1)."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the subjects for train, validate and test, where neither folders nor table say."""
    seed: int = 0
    """Deals the subjects to the splits, and draws the phantoms."""
    slices: int | None = None
    """Slices a subject: 32 by default for volumes, 16 for phantoms."""
    size: tuple[int, int] | None = None
    """Rows and cols of a slice: 256 256 by default for volumes, 128 128 for phantoms."""
    positions: tuple[float, float] | None = None
    """Lowest and highest slice of volumes, as fractions of the head's height.

    By default 0.45 0.65: in a skull-stripped head about the slab of the public release."""
    positions_mm: tuple[float, float] | None = None
    """The same in mm of the volume's world, instead of fractions."""
    subjects: int | None = None
    """About how many subjects, each split keeping its share; all by default, and 64 phantoms."""
    grid_multiple: int = 8
    """The crop's sides are multiples of this, so that a model's downsampling divides them."""
    overwrite: bool = False
    """Replace an archive that is already there."""

    def __post_init__(self):
        for name in ("slices", "subjects"):
            check_field(self, name, lambda value: value is None or value >= 1, "at least 1")
        check_field(self, "grid_multiple", lambda value: 1 <= value <= 64, "from 1 to 64")
        check_field(self, "seed", lambda value: value >= 0, "at least 0")
        check_field(
            self, "size", lambda value: value is None or min(value) >= 16, "at least 16 by 16"
        )
        check_field(
            self,
            "fractions",
            lambda value: min(value) >= 0 and abs(sum(value) - 1) < 1e-6,
            "shares of at least 0 that sum to 1",
        )
        check_field(
            self,
            "positions",
            lambda value: value is None or 0 <= value[0] <= value[1] <= 1,
            "in [0, 1], the lower one first",
        )
        if self.positions and self.positions_mm:
            raise InputError("Give `positions` or `positions_mm`, not both.")


@dataclass(frozen=True)
class _Source:
    """What to read: items, and how one of them gives slices."""

    items: list
    read: Callable[..., list[tuple[SliceRecord, np.ndarray]]]
    slices: int
    intensity_rule: str


def make_archive(config: SourceConfig) -> SliceArchive:
    """Makes the archive a configuration asks for, with progress on stderr.

    Raises:
        InputError: if a file, a flag or the folder cannot be used; nothing is written then.
    """
    check_writable(config.out, overwrite=config.overwrite)
    source = _phantoms(config) if config.source == "phantom" else _files(config)
    stream = (pair for group in _read_ahead(source.read, source.items) for pair in group)
    with closing(track(stream, source.slices, "Preparing", "slices")) as slices:
        return write_archive(
            config.out,
            slices,
            intensity_rule=source.intensity_rule,
            grid_multiple=config.grid_multiple,
            overwrite=config.overwrite,
        )


def _files(config: SourceConfig) -> _Source:
    files, are_volumes = find_files(config.source)
    root = Path(config.source)
    root = root.parent if root.is_file() else root
    if are_volumes:
        return _volumes(config, files, root)
    _refuse_unused(config, "pictures", ("slices", "size", "positions", "positions_mm"))
    records = image_records(
        files,
        root,
        pattern=config.pattern,
        table=config.table,
        fractions=config.fractions,
        seed=config.seed,
    )
    records = _subsample_subjects(records, config)
    return _Source(
        items=records,
        read=lambda record: [(record, read_image(root / record.source))],
        slices=len(records),
        intensity_rule=IMAGE_RULE,
    )


def _volumes(config: SourceConfig, files: list[Path], root: Path) -> _Source:
    from brainslices.data import volumes

    pattern = config.pattern or VOLUME_PATTERN
    named = _named(files, root, pattern, config.table, config.fractions, config.seed)
    named = _subsample_subjects(named, config)
    count, size = config.slices or 32, config.size or (256, 256)

    def read(item: _Named) -> list[tuple[SliceRecord, np.ndarray]]:
        positions, slices = volumes.axial_slices(
            volumes.read_volume(root / item.source),
            count,
            size,
            config.positions or (0.45, 0.65),
            config.positions_mm,
        )
        records = [item.record(float(position)) for position in positions]
        return [
            (replace(record, slice_id=f"{record.slice_id}_slice_{number}"), image)
            for number, (record, image) in enumerate(zip(records, slices, strict=True))
        ]

    return _Source(named, read, len(named) * count, volumes.INTENSITY_RULE)


def _phantoms(config: SourceConfig) -> _Source:
    from brainslices.data.phantom import phantom_slices

    _refuse_unused(config, "phantoms", ("pattern", "table", "positions", "positions_mm"))
    count, size = config.slices or 16, config.size or (128, 128)
    positions = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    names = [f"phantom_{subject:04d}" for subject in range(config.subjects or PHANTOMS)]
    split_of = split_subjects(names, config.fractions, config.seed)

    def read(subject: int) -> list[tuple[SliceRecord, np.ndarray]]:
        name = names[subject]
        return [
            (
                SliceRecord(f"{name}_slice_{number}", name, split_of[name], position, "phantom"),
                image,
            )
            for number, (position, image) in enumerate(
                zip(
                    positions.tolist(),
                    phantom_slices(subject, positions, size, config.seed),
                    strict=True,
                )
            )
        ]

    order = sorted(range(len(names)), key=lambda n: SPLITS.index(split_of[names[n]]))
    return _Source(order, read, len(names) * count, PHANTOM_RULE)


def _subsample_subjects(items, config):
    """The items of some subjects, drawn by the seed: of each split its share, at least one."""
    if config.subjects is None:
        return items
    of_split = defaultdict(set)
    for item in items:
        of_split[item.split].add(item.subject)
    share = config.subjects / sum(map(len, of_split.values()))
    chance, kept = np.random.default_rng(config.seed), set()
    for split in SPLITS:
        names = sorted(of_split[split])
        count = min(len(names), max(1, round(share * len(names))))
        kept |= {names[row] for row in chance.permutation(len(names))[:count]}
    return [item for item in items if item.subject in kept]


def _refuse_unused(config: SourceConfig, kind: str, names: Iterable[str]) -> None:
    for name in names:
        if getattr(config, name) is not None:
            raise InputError(
                f"`{name}` means nothing for {kind}: leave it out for the source {config.source}. "
                f"Received: {name}={getattr(config, name)}."
            )


def _read_ahead(read: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in order, a few of them read ahead by threads (decoders let go of Python's lock)."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
