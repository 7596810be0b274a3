"""Sources of a slice archive: folders of grey pictures or of volumes, and phantoms.

Files are found below the source folder, whatever its depth. Left out are hidden files and masks:
names with the word `seg` or `fseg`, such as `keras_png_slices_seg_train` or `seg_001_slice_0.png`.
A folder named after a split (`train`, `keras_png_slices_validate`, ...) puts all files below it
into that split; without such folders whole subjects are dealt to the splits at random, by a seed.
"""

import csv
import logging
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from brainslices.archive import (
    SPLITS,
    SliceArchive,
    SliceRecord,
    check_writable,
    split_name,
    write_archive,
)
from brainslices.config import expect
from brainslices.errors import InputError
from brainslices.pictures import read_picture
from brainslices.progress import track

__all__ = [
    "SourceConfig",
    "deal_subjects",
    "find_files",
    "make_archive",
    "picture_records",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".hdr")
PICTURE_PATTERN = r"(?P<subject>case_\d+)_slice_(?P<slice>\d+)"
VOLUME_PATTERN = r"(?P<subject>OAS\d_\d{4}|sub-[A-Za-z0-9]+)"  # OASIS and BIDS
PICTURE_RULE = "8-bit grey values of the pictures, as they are"
PHANTOMS = 64
PHANTOM_RULE = "phantoms, drawn in 0..255"
_MASK = re.compile(r"(^|[_.])f?seg([_.]|$)", re.IGNORECASE)
_READERS, _READ_AHEAD = 4, 32
logger = logging.getLogger(__name__)
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
            expect(self, name, lambda value: value is None or value >= 1, "at least 1")
        expect(self, "grid_multiple", lambda value: 1 <= value <= 64, "from 1 to 64")
        expect(self, "seed", lambda value: value >= 0, "at least 0")
        expect(self, "size", lambda value: value is None or min(value) >= 16, "at least 16 by 16")
        expect(
            self,
            "fractions",
            lambda value: min(value) >= 0 and abs(sum(value) - 1) < 1e-6,
            "shares of at least 0 that sum to 1",
        )
        expect(
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


def find_files(source: str | Path) -> tuple[list[Path], bool]:
    """Finds pictures or volumes below a folder (or takes a single file), sorted.

    Returns:
        The files, and whether they are volumes.

    Raises:
        InputError: if the source is missing, has neither, or both.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"There is no {source}. Give a folder of pictures or volumes.")
    files = [source] if source.is_file() else _visible_files(source)
    pictures = [file for file in files if file.name.lower().endswith(PICTURE_SUFFIXES)]
    volumes = [file for file in files if file.name.lower().endswith(VOLUME_SUFFIXES)]
    paired = {file.with_suffix("") for file in volumes}
    volumes += [f for f in files if f.suffix.lower() == ".img" and f.with_suffix("") not in paired]
    if pictures and volumes:
        raise InputError(
            f"{source} holds pictures ({pictures[0]}) and volumes ({volumes[0]}). Give a folder of "
            "one kind, or move one of them out."
        )
    if not pictures and not volumes:
        raise InputError(
            f"{source} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no volumes "
            "(.nii, .nii.gz, .hdr with .img) but perhaps masks (named seg). Give the folder that "
            "does."
        )
    return sorted(pictures or volumes), bool(volumes)


def picture_records(
    files: Iterable[Path],
    root: str | Path,
    *,
    pattern: str | None = None,
    table: Path | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[SliceRecord]:
    """Says of each picture who, which split and how high; opens none of them.

    The position is the table's; else the slice number over the largest of the set; else, without
    numbers, the rank among the subject's files by name.

    Args:
        files: pictures below `root`; with a table, those it lists are taken in their place.
        root: the folder that record sources are relative to.
        pattern, table, fractions, seed: as in `SourceConfig`.

    Returns:
        Records ordered by split, subject and position.

    Raises:
        InputError: if a file's subject cannot be told, or is in two splits.
    """
    named = _named(files, Path(root), pattern or PICTURE_PATTERN, table, fractions, seed)
    largest = max((item.number for item in named if item.number is not None), default=0)
    of_subject = defaultdict(list)
    for item in named:
        of_subject[item.subject].append(item)
    records = []
    for items in of_subject.values():
        ranks = np.linspace(0, 1, len(items)) if len(items) > 1 else [0.5]
        for item, rank in zip(items, ranks, strict=True):
            position = item.position
            if position is None and item.number is not None:
                position = item.number / largest if largest else 0.5
            records.append(item.record(float(rank if position is None else position)))
    return sorted(records, key=lambda r: (SPLITS.index(r.split), r.subject, r.position))


def deal_subjects(
    subjects: Iterable[str], fractions: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Deals subjects to the splits at random; the same subjects and seed give the same deal.

    Three subjects or more fill every split whose fraction is positive.

    Returns:
        The split of each subject.
    """
    subjects = sorted(set(subjects))
    quota = np.array(fractions) * len(subjects)
    counts = np.floor(quota + 1e-9).astype(int)
    for split in np.argsort(counts - quota, kind="stable")[: len(subjects) - counts.sum()]:
        counts[split] += 1
    if len(subjects) >= 3:
        for split in np.flatnonzero((counts == 0) & (quota > 0)):
            counts[counts.argmax()] -= 1
            counts[split] = 1
    order = np.random.default_rng(seed).permutation(len(subjects))
    splits = np.repeat(SPLITS, counts)
    return {subjects[row]: str(split) for row, split in zip(order, splits, strict=True)}


def _files(config: SourceConfig) -> _Source:
    files, are_volumes = find_files(config.source)
    root = Path(config.source)
    root = root.parent if root.is_file() else root
    if are_volumes:
        return _volumes(config, files, root)
    _refuse_unused(config, "pictures", ("slices", "size", "positions", "positions_mm"))
    records = picture_records(
        files,
        root,
        pattern=config.pattern,
        table=config.table,
        fractions=config.fractions,
        seed=config.seed,
    )
    records = _fewer(records, config)
    return _Source(
        items=records,
        read=lambda record: [(record, read_picture(root / record.source))],
        slices=len(records),
        intensity_rule=PICTURE_RULE,
    )


def _volumes(config: SourceConfig, files: list[Path], root: Path) -> _Source:
    from brainslices import volumes

    pattern = config.pattern or VOLUME_PATTERN
    named = _named(files, root, pattern, config.table, config.fractions, config.seed)
    named = _fewer(named, config)
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
    from brainslices.phantom import phantom_slices

    _refuse_unused(config, "phantoms", ("pattern", "table", "positions", "positions_mm"))
    count, size = config.slices or 16, config.size or (128, 128)
    positions = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    names = [f"phantom_{subject:04d}" for subject in range(config.subjects or PHANTOMS)]
    split_of = deal_subjects(names, config.fractions, config.seed)

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


def _fewer(items, config):
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


@dataclass(frozen=True)
class _Named:
    """A file and what its path or the table says of it."""

    source: str
    subject: str
    split: str | None
    position: float | None
    number: int | None

    def record(self, position: float) -> SliceRecord:
        name = self.source
        for suffix in (*PICTURE_SUFFIXES, ".gz", ".nii", ".hdr", ".img"):
            name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
        parts = [part for part in name.split("/") if not _split_of_folder(part)]
        return SliceRecord("/".join(parts), self.subject, self.split, position, self.source)


def _named(
    files: Iterable[Path],
    root: Path,
    pattern: str,
    table: Path | None,
    fractions: tuple[float, float, float],
    seed: int,
) -> list[_Named]:
    """Names every file and gives it a split, ordered by split and name."""
    pattern = _compiled(pattern)
    if table is None:
        named = [_from_path(file.relative_to(root), pattern, root) for file in files]
    else:
        named = _from_table(Path(table), root, pattern)
    without = [item for item in named if item.split is None]
    if without and len(without) < len(named):
        inside = next(item for item in named if item.split)
        raise InputError(
            f"Some files have a split ({inside.source} is in {inside.split!r}), others have none "
            f"({without[0].source}). Put all of {root} into split folders (or give each a split in "
            "the table), or none."
        )
    if without:
        split_of = deal_subjects((item.subject for item in named), fractions, seed)
        named = [replace(item, split=split_of[item.subject]) for item in named]
    named.sort(key=lambda item: (SPLITS.index(item.split), item.source))
    _refuse_subject_in_two_splits(named)
    return named


def _compiled(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"`pattern` is no regular expression ({error}): {pattern!r}.") from error
    if "subject" not in compiled.groupindex:
        raise InputError(
            "`pattern` must name a group subject, for example "
            f"'(?P<subject>case_\\d+)_slice_(?P<slice>\\d+)'. Received: pattern={pattern!r}."
        )
    return compiled


def _from_path(path: Path, pattern: re.Pattern, root: Path) -> _Named:
    name = path.as_posix()
    found = pattern.search(name)
    if found is None and pattern.pattern == VOLUME_PATTERN:
        subject, number = re.sub(r"\.(nii|hdr|img)(\.gz)?$", "", name, flags=re.I), None
        logger.warning(
            "%s is taken as a subject of its own. If several volumes are of one head, name it by "
            "--pattern or --table.",
            root / path,
        )
    elif found is None or not found["subject"]:
        rule = "case_NNN_slice_K" if pattern.pattern == PICTURE_PATTERN else pattern.pattern
        raise InputError(
            f"{root / path} does not tell its subject by the rule {rule}. Rename it, or give "
            "prepare_data.py a --pattern with the groups subject and slice, or a --table with the "
            "columns file and subject."
        )
    else:
        subject, number = found["subject"], _slice_number(found, root / path)
    splits = filter(None, (_split_of_folder(part) for part in path.parts[:-1]))
    return _Named(name, subject, next(splits, None), None, number)


def _slice_number(found: re.Match, path: Path) -> int | None:
    text = found.groupdict().get("slice")
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(f"{path} has no slice number where the pattern says: {text!r}.")
    return int(text)


def _from_table(table: Path, root: Path, pattern: re.Pattern) -> list[_Named]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table {table} cannot be read ({error}).") from error
    if not rows or not {"file", "subject"} <= set(rows[0]):
        columns = ", ".join(rows[0]) if rows else "none"
        raise InputError(
            f"The table {table} must have the columns file and subject (and may have split and "
            f"position), and a row for each file. Received: {columns}."
        )
    return [
        _from_row(row, f"{table}, line {line}", root, pattern) for line, row in enumerate(rows, 2)
    ]


def _from_row(row: dict, where: str, root: Path, pattern: re.Pattern) -> _Named:
    name, subject = Path(row["file"] or ""), row["subject"]
    if not subject or not (root / name).is_file():
        raise InputError(
            f"{where} must name a subject and a file of {root}. Received: file={row['file']!r}, "
            f"subject={subject!r}."
        )
    position = None
    if row.get("position"):
        try:
            position = float(row["position"])
        except ValueError:
            position = -1.0
        if not 0 <= position <= 1:
            raise InputError(
                f"{where}: a position must be a number in [0, 1]. Received: {row['position']!r}."
            )
    try:
        split = split_name(row["split"]) if row.get("split") else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    found = pattern.search(name.as_posix())
    number = _slice_number(found, root / name) if found else None
    return _Named(name.as_posix(), subject, split, position, number)


def _refuse_subject_in_two_splits(named: list[_Named]) -> None:
    first = {}
    for item in named:
        other = first.setdefault(item.subject, item)
        if other.split != item.split:
            raise InputError(
                f"Subject {item.subject!r} is in two splits: in {other.split!r} by {other.source} "
                f"and in {item.split!r} by {item.source}. Keep each subject in one split."
            )


def _split_of_folder(folder: str) -> str | None:
    """The split a folder is named after: its last word is one."""
    try:
        return split_name(re.split(r"[_\-. ]", folder)[-1])
    except InputError:
        return None


def _visible_files(folder: Path) -> list[Path]:
    def wanted(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return not any(part.startswith(".") or _MASK.search(part) for part in parts)

    return [path for path in folder.rglob("*") if wanted(path) and path.is_file()]
