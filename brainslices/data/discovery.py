"""Sources of a slice archive: folders of grey pictures or of volumes, and phantoms.

Files are found below the source folder, whatever its depth. Left out are hidden files and masks:
names with the word `seg` or `fseg`, such as `keras_png_slices_seg_train` or `seg_001_slice_0.png`.
A folder named after a split (`train`, `keras_png_slices_validate`, ...) puts all files below it
into that split; without such folders whole subjects are dealt to the splits at random, by a seed.
"""

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainslices.data.archive import SPLITS, SliceRecord, split_name
from brainslices.errors import InputError

__all__ = ["split_subjects", "find_files", "image_records"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".hdr")
IMAGE_PATTERN = r"(?P<subject>case_\d+)_slice_(?P<slice>\d+)"
VOLUME_PATTERN = r"(?P<subject>OAS\d_\d{4}|sub-[A-Za-z0-9]+)"  # OASIS and BIDS
_MASK = re.compile(r"(^|[_.])f?seg([_.]|$)", re.IGNORECASE)
logger = logging.getLogger(__name__)


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
    pictures = [file for file in files if file.name.lower().endswith(IMAGE_SUFFIXES)]
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
            f"{source} holds no pictures ({', '.join(IMAGE_SUFFIXES)}) and no volumes "
            "(.nii, .nii.gz, .hdr with .img) but perhaps masks (named seg). Give the folder that "
            "does."
        )
    return sorted(pictures or volumes), bool(volumes)


def image_records(
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
    named = _named(files, Path(root), pattern or IMAGE_PATTERN, table, fractions, seed)
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


def split_subjects(
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
        for suffix in (*IMAGE_SUFFIXES, ".gz", ".nii", ".hdr", ".img"):
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
        split_of = split_subjects((item.subject for item in named), fractions, seed)
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
        rule = "case_NNN_slice_K" if pattern.pattern == IMAGE_PATTERN else pattern.pattern
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
