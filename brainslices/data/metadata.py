"""The subject, split and slice position of each source file, from its path or from a table.

A folder named after a split (`train`, `keras_png_slices_validate`, ...) assigns all files below it
to that split. Without such folders, whole subjects are assigned to the splits at random.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainslices.data.archive import SliceRecord
from brainslices.data.csv_files import read_rows
from brainslices.data.discovery import SourceFiles, strip_suffixes
from brainslices.data.splits import SPLITS, check_subject_splits, normalize_split, split_subjects
from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["FileMetadata", "assign_splits", "read_metadata", "slice_records"]

PATTERNS = {
    "image": r"(?P<subject>case_\d+)_slice_(?P<slice>\d+)",
    "volume": r"(?P<subject>OAS\d_\d{4}|sub-[A-Za-z0-9]+)",  # OASIS and BIDS
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileMetadata:
    """What is known about a file before it is opened.

    Args:
        source: POSIX path of the file, relative to the source's root.
        subject: subject identifier.
        split: `train`, `validate` or `test`; None if neither a folder nor the table names one.
        position: slice position in [0, 1] from the table, or None.
        slice_number: number of the slice from the file name, or None.
    """

    source: str
    subject: str
    split: str | None = None
    position: float | None = None
    slice_number: int | None = None

    @property
    def slice_id(self) -> str:
        """The source without the suffixes of its format and without split folders."""
        parts = strip_suffixes(self.source).split("/")
        return "/".join(part for part in parts if not _split_of_folder(part))

    def record(self, position: float, suffix: str = "") -> SliceRecord:
        """Return the record of a slice at a position, with `suffix` appended to its id."""
        return SliceRecord(
            self.slice_id + suffix, self.subject, self.split or "", position, self.source
        )


def read_metadata(
    files: SourceFiles, pattern: str | None = None, table: PathLike | None = None
) -> list[FileMetadata]:
    """Read the subject, split and slice number of each file from its path or from a table.

    Args:
        files: the files; with a table, the files that it lists are taken instead.
        pattern: regular expression with the groups `subject` and, optionally, `slice`, searched
            in the path below the root; None is the default pattern of the kind of file.
        table: CSV with the columns file and subject; optionally split and position.

    Returns:
        Metadata sorted by source; either all of it has a split or none has.

    Raises:
        InputError: if a file has no subject, only some files have a split, or a subject has
            two splits.
    """
    compiled = _compile_pattern(pattern or PATTERNS[files.kind])
    if table is None:
        metadata = [_from_path(path, files, compiled) for path in files.paths]
    else:
        metadata = _from_table(Path(table), files.root, compiled)
    with_split = [item for item in metadata if item.split]
    without = [item for item in metadata if not item.split]
    if with_split and without:
        raise InputError(
            f"Some files have a split ({with_split[0].source} is in {with_split[0].split!r}), "
            f"others have none ({without[0].source}). Put all files of {files.root} into split "
            "folders (or give each a split in the table), or none."
        )
    check_subject_splits(metadata)
    return sorted(metadata, key=lambda item: item.source)


def assign_splits(
    metadata: Sequence[FileMetadata], fractions: tuple[float, float, float], seed: int
) -> list[FileMetadata]:
    """Assign subjects to splits at random if the files have no splits.

    Args:
        metadata: from `read_metadata`.
        fractions: as in `split_subjects`.
        seed: as in `split_subjects`.

    Returns:
        Metadata sorted by split and source, each with a split.
    """
    if not all(item.split for item in metadata):
        split_of = split_subjects((item.subject for item in metadata), fractions, seed)
        metadata = [replace(item, split=split_of[item.subject]) for item in metadata]
    return sorted(metadata, key=lambda item: (SPLITS.index(str(item.split)), item.source))


def slice_records(metadata: Sequence[FileMetadata]) -> list[SliceRecord]:
    """Return the record of each image, with its slice position.

    The position is the table's; else the slice number over the largest of all images; else,
    without numbers, the rank among the subject's files by name.

    Args:
        metadata: one item an image, sorted by source within a subject.

    Returns:
        Records sorted by split, subject and position.
    """
    of_subject = defaultdict(list)
    largest = max((item.slice_number or 0 for item in metadata), default=0)
    for item in metadata:
        of_subject[item.subject].append(item)
    records = []
    for items in of_subject.values():
        ranks = np.linspace(0, 1, len(items)) if len(items) > 1 else [0.5]
        for item, rank in zip(items, ranks, strict=True):
            position = item.position
            if position is None and item.slice_number is not None:
                position = item.slice_number / largest if largest else 0.5
            records.append(item.record(float(rank if position is None else position)))
    order = (*SPLITS, "")  # a folder without splits has none
    return sorted(records, key=lambda r: (order.index(r.split), r.subject, r.position))


def _compile_pattern(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"`pattern` must be a regular expression ({error}). Received: pattern={pattern!r}."
        ) from error
    if "subject" not in compiled.groupindex:
        raise InputError(
            "`pattern` must have a group named subject, for example "
            f"{PATTERNS['image']!r}. Received: pattern={pattern!r}."
        )
    return compiled


def _from_path(path: Path, files: SourceFiles, pattern: re.Pattern) -> FileMetadata:
    relative = path.relative_to(files.root)
    source, number = relative.as_posix(), None
    match = pattern.search(source)
    if match and match["subject"]:
        subject, number = match["subject"], _slice_number(match, path)
    elif files.kind == "volume" and pattern.pattern == PATTERNS["volume"]:
        subject = strip_suffixes(source)
        logger.warning(
            "%s is treated as a separate subject. If several volumes belong to one subject, name "
            "it by --pattern or --table.",
            path,
        )
    else:
        rule = "case_NNN_slice_K" if pattern.pattern == PATTERNS["image"] else pattern.pattern
        raise InputError(
            f"{path} does not match the subject pattern {rule}. Rename it, or give "
            "prepare_data.py a --pattern with the groups subject and slice, or a --table with the "
            "columns file and subject."
        )
    splits = (_split_of_folder(part) for part in relative.parts[:-1])
    return FileMetadata(source, subject, next(filter(None, splits), None), None, number)


def _slice_number(match: re.Match, path: Path) -> int | None:
    text = match.groupdict().get("slice")
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(
            f"The group slice of `pattern` must match a number. Received: {text!r} in {path}."
        )
    return int(text)


def _from_table(table: Path, root: Path, pattern: re.Pattern) -> list[FileMetadata]:
    try:
        rows = read_rows(table)
    except (OSError, ValueError) as error:
        raise InputError(f"The table {table} cannot be read ({error}).") from error
    columns = list(next(iter(rows.values()), ()))
    if not {"file", "subject"} <= set(columns):
        raise InputError(
            f"The table {table} must have the columns file and subject, optionally split and "
            f"position, and a row for each file. Received: {', '.join(columns) or 'none'}."
        )
    metadata = []
    for line, row in rows.items():
        try:
            metadata.append(_from_row(row, root, pattern))
        except InputError as error:
            raise InputError(f"{table}, line {line}: {error}") from error
    return metadata


def _from_row(row: dict[str, str], root: Path, pattern: re.Pattern) -> FileMetadata:
    name, subject = Path(row["file"]), row["subject"]
    if not subject or not (root / name).is_file():
        raise InputError(
            f"A row must have a subject and a file below {root}. Received: "
            f"file={row['file']!r}, subject={subject!r}."
        )
    match = pattern.search(name.as_posix())
    return FileMetadata(
        source=name.as_posix(),
        subject=subject,
        split=normalize_split(row["split"]) if row.get("split") else None,
        position=_parse_position(row["position"]) if row.get("position") else None,
        slice_number=_slice_number(match, root / name) if match else None,
    )


def _parse_position(text: str) -> float:
    try:
        position = float(text)
    except ValueError:
        position = np.nan
    if not 0 <= position <= 1:
        raise InputError(f"`position` must be a number in [0, 1]. Received: position={text!r}.")
    return position


def _split_of_folder(folder: str) -> str | None:
    """The split that the last word of a folder's name is, if it is one."""
    try:
        return normalize_split(re.split(r"[_\-. ]", folder)[-1])
    except InputError:
        return None
