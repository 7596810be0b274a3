"""Prepare a slice archive from images, volumes or phantoms."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainslices.data.archive import SliceArchive, SliceRecord
from brainslices.data.archive_writer import check_writable, write_archive
from brainslices.data.discovery import SourceFiles, find_files
from brainslices.data.images import fit_image, read_image
from brainslices.data.metadata import FileMetadata, assign_splits, slice_records
from brainslices.data.prefetch import READER_THREADS, prefetch
from brainslices.data.source_config import FRACTIONS, SourceConfig
from brainslices.data.sources import read_source
from brainslices.data.splits import SPLITS, split_subjects
from brainslices.data.subject_table import (
    SubjectTable,
    describe,
    read_subject_table,
    select_subjects,
)
from brainslices.errors import InputError
from brainslices.progress import track
from brainslices.resources import check_needed

__all__ = ["SourceConfig", "make_archive"]

IMAGE_RULE = "8-bit grey values of the images, unchanged"
WINDOW_RULE = "grey levels from {:g} to {:g} of the images become 0..255, linear, clipped"
PHANTOM_RULE = "phantoms, rendered in 0..255"
PHANTOMS = 64
# Bytes for each pixel of a slice while a thread renders it.
RENDERING_BYTES = 130
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """The items to read, and how to read the slices of one item."""

    items: list
    read: Callable[..., list[tuple[SliceRecord, np.ndarray]]]
    slice_count: int
    intensity_rule: str
    subjects: SubjectTable | None = None


def make_archive(config: SourceConfig, report: Callable[[str], None] = logger.info) -> SliceArchive:
    """Prepare the archive of a configuration, with progress on stderr.

    Args:
        config: the source and how it is read.
        report: receives lines on the files that are read and left out, with counts and examples.

    Returns:
        The archive, opened.

    Raises:
        InputError: if a file, a flag or the output folder cannot be used; nothing is written.
    """
    check_writable(config.out, overwrite=config.overwrite)
    _check_needed(config)
    subject_table = config.subject_table and read_subject_table(config.subject_table)
    source = _phantom_source(config) if config.source == "phantom" else _file_source(config, report)
    stream = (pair for group in prefetch(source.read, source.items) for pair in group)
    progress: Any = track(stream, source.slice_count, "Preparing", "slices")
    with closing(progress) as slices:
        archive = write_archive(
            config.out,
            slices,
            intensity_rule=source.intensity_rule,
            subjects=subject_table or source.subjects,
            grid_multiple=config.grid_multiple,
            overwrite=config.overwrite,
        )
    _report_subjects(archive, report)
    return archive


def _report_subjects(archive: SliceArchive, report: Callable[[str], None]) -> None:
    """Report the columns of `subjects.csv`, and which subjects have no row."""
    if not (table := archive.subjects):
        return
    report(f"subjects  {describe(table)}")
    _, missing = select_subjects(table, (item.subject for item in archive.index))
    if missing:
        report(f"subjects  {len(missing)} without a row in the table, e.g. {missing[0]}")


def _file_source(config: SourceConfig, report: Callable[[str], None]) -> _Source:
    files = find_files(config.source, config)
    if files.kind == "image":
        _refuse_unused(config, "images", ("slices", "positions", "positions_mm", "pixel_mm"))
    else:
        _refuse_unused(config, "volumes", ("window",))
    files, source_metadata = read_source(files, config, report=report)
    metadata = assign_splits(source_metadata, config.fractions, config.seed)
    _report_splits(source_metadata, metadata, config, report)
    make_source = _image_source if files.kind == "image" else _volume_source
    return make_source(config, files, metadata)


def _report_splits(
    before: Iterable[FileMetadata],
    after: Iterable[FileMetadata],
    config: SourceConfig,
    report: Callable[[str], None],
) -> None:
    """Report where the splits come from."""
    splits = sorted({item.split for item in before if item.split}, key=SPLITS.index)
    drawn = {item.subject for item in after if item.split == "validate"}
    if not splits:
        report("splits    by subject, at random")
    elif drawn and "validate" not in splits:
        report(f"splits    of the source; validate is {len(drawn)} subjects of its train")
    else:
        report(f"splits    of the source: {', '.join(splits)}")
        if config.fractions != FRACTIONS:
            logger.warning("--fractions is not used: the source has its own splits.")


def _image_source(
    config: SourceConfig, files: SourceFiles, metadata: list[FileMetadata]
) -> _Source:
    records = _subsample_subjects(slice_records(metadata), config)

    def read(record: SliceRecord) -> list[tuple[SliceRecord, np.ndarray]]:
        image = read_image(files.root / record.source, config.window)
        return [(record, fit_image(image, config.size) if config.size else image)]

    rule = WINDOW_RULE.format(*config.window) if config.window else IMAGE_RULE
    return _Source(records, read, len(records), rule)


def _volume_source(
    config: SourceConfig, files: SourceFiles, metadata: list[FileMetadata]
) -> _Source:
    from brainslices.data import volumes

    metadata = _subsample_subjects(metadata, config)
    count, size = config.slices or 32, config.size or (256, 256)
    fractions = config.positions or (0.45, 0.65)

    def read(item: FileMetadata) -> list[tuple[SliceRecord, np.ndarray]]:
        volume = volumes.read_volume(files.root / item.source)
        positions, slices = volumes.axial_slices(
            volume, count, size, fractions, config.positions_mm, config.pixel_mm
        )
        return [
            (item.record(float(position), f"_slice_{number}"), image)
            for number, (position, image) in enumerate(zip(positions, slices, strict=True))
        ]

    return _Source(metadata, read, len(metadata) * count, volumes.INTENSITY_RULE)


def _phantom_source(config: SourceConfig) -> _Source:
    from brainslices.data.phantom import phantom_attributes, phantom_slices

    _refuse_unused(config, "phantoms", ("pattern", "table", "positions", "positions_mm"))
    _refuse_unused(config, "phantoms", ("include", "exclude", "window", "pixel_mm"))
    count, size = config.slices or 16, config.size or (128, 128)
    positions = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    names = [f"phantom_{subject:04d}" for subject in range(config.subjects or PHANTOMS)]
    split_of = split_subjects(names, config.fractions, config.seed)

    def read(subject: int) -> list[tuple[SliceRecord, np.ndarray]]:
        name = names[subject]
        images = phantom_slices(subject, positions, size, config.seed)
        return [
            (SliceRecord(f"{name}_slice_{k}", name, split_of[name], position, "phantom"), image)
            for k, (position, image) in enumerate(zip(positions.tolist(), images, strict=True))
        ]

    order = sorted(range(len(names)), key=lambda n: SPLITS.index(split_of[names[n]]))
    subjects = {name: phantom_attributes(n, config.seed) for n, name in enumerate(names)}
    return _Source(order, read, len(names) * count, PHANTOM_RULE, subjects)


def _check_needed(config: SourceConfig) -> None:
    """Check what the numbers of slices, pixels and subjects need at least."""
    requested = {name: getattr(config, name) for name in ("subjects", "slices", "size")}
    requested = {name: value for name, value in requested.items() if value is not None}
    if not requested:
        return
    rows, cols = config.size or (16, 16)
    slices = config.slices or 1
    pixels, rendered, subjects = rows * cols, 4 * slices, 1  # one subject in float32
    if config.source == "phantom":
        rendered = slices + RENDERING_BYTES * min(READER_THREADS, config.subjects or PHANTOMS)
        subjects = config.subjects or 1
    check_needed(
        ", ".join(f"{name}={value}" for name, value in requested.items()),
        memory=pixels * rendered + subjects * 100,  # and all names
        disk=pixels * slices * subjects,
        folder=config.out,
    )


def _subsample_subjects(items: list, config: SourceConfig) -> list:
    """Draw `config.subjects` subjects in proportion from each split, at least one of each."""
    if config.subjects is None:
        return items
    of_split = defaultdict(set)
    for item in items:
        of_split[item.split].add(item.subject)
    fraction = config.subjects / sum(map(len, of_split.values()))
    rng, selected = np.random.default_rng(config.seed), set()
    for split in SPLITS:
        names = sorted(of_split[split])
        count = min(len(names), max(1, round(fraction * len(names))))
        selected |= {names[row] for row in rng.permutation(len(names))[:count]}
    return [item for item in items if item.subject in selected]


def _refuse_unused(config: SourceConfig, kind: str, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if value not in (None, ()):
            raise InputError(
                f"`{name}` does not apply to {kind}: leave it out for the source {config.source}. "
                f"Received: {name}={value}."
            )
