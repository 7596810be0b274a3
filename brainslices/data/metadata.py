"""The subject, split and slice position of each source file, from its path or from a table.

Split folders (`train` and `test`, `keras_png_slices_train` and its siblings) assign all files below
them to their splits. Without such folders, whole subjects are assigned to the splits at random.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainslices.data.archive import SliceRecord
from brainslices.data.discovery import SourceFiles, strip_suffixes
from brainslices.data.source_table import SourceTable, TableRow
from brainslices.data.split_folders import find_split_folders
from brainslices.data.splits import SPLITS, check_subject_splits, draw_validation, split_subjects
from brainslices.errors import InputError

__all__ = ["FileMetadata", "assign_splits", "read_metadata", "slice_records"]

# OASIS-1 to 3, BIDS, IXI, ADNI: the scans of all visits of a person have the same subject.
_SUBJECT = r"(?P<subject>OAS\d_\d{4}|OAS3\d{4}|sub-[A-Za-z0-9]+|IXI\d{3}|\d{3}_S_\d{4})"
_SLICE = r"(?:.*(?:_|/|slice[_-]?)(?P<slice>\d{1,4})(?:\.[A-Za-z]+)+$)?"
PATTERNS = {
    "image": (r"(?P<subject>case_\d+)_slice_(?P<slice>\d+)", _SUBJECT + _SLICE),
    "volume": (_SUBJECT,),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileMetadata:
    """What is known about a file before it is opened.

    Args:
        source: POSIX path of the file, relative to the source's root.
        subject: subject identifier.
        slice_id: the source without the suffixes of its format and, where that is unique, without
            split folders.
        split: `train`, `validate` or `test`; None if neither a folder nor the table names one.
        position: slice position in [0, 1] from the table, or None.
        slice_number: number of the slice from the file name, or None.
    """

    source: str
    subject: str
    slice_id: str
    split: str | None = None
    position: float | None = None
    slice_number: int | None = None

    def record(self, position: float, suffix: str = "") -> SliceRecord:
        """Return the record of a slice at a position, with `suffix` appended to its id."""
        return SliceRecord(
            self.slice_id + suffix, self.subject, self.split or "", position, self.source
        )


def read_metadata(
    files: SourceFiles,
    pattern: str | None = None,
    table: SourceTable | None = None,
    *,
    split_folders: Mapping[str, str] | None = None,
    require_subject: bool = True,
) -> list[FileMetadata]:
    """Read the subject, split and slice number of each file from its path or from a table.

    Args:
        files: the files; of a table of subjects, those of its subjects are taken.
        pattern: regular expression with the groups `subject` and, optionally, `slice`, searched
            in the path below the root; None is the known names of the kind of file.
        table: overrides the subject, split and position of its files or subjects.
        split_folders: folder name -> split; None finds them among the files.
        require_subject: refuse images without a subject; otherwise each is its own.

    Returns:
        Metadata sorted by source; either all of it has a split or none has.

    Raises:
        InputError: if a file has no subject, only some have a split, or a subject has two.
    """
    patterns = [_compile_pattern(pattern)] if pattern else list(_KNOWN[files.kind])
    sources = [path.relative_to(files.root).as_posix() for path in files.paths]
    folders = find_split_folders(sources) if split_folders is None else split_folders
    rows = _rows_of_files(table, files.root)
    metadata, unnamed = [], []
    for source, slice_id in zip(sources, _slice_ids(sources, folders), strict=True):
        item = _from_path(source, slice_id, patterns, folders)
        if source in rows:
            item = _override(item, rows[source], table)
        if not item.subject:
            unnamed.append(item)
            item = replace(item, subject=strip_suffixes(source))
        metadata.append(item)
    if unnamed:
        may_be_own = not pattern and (files.kind == "volume" or not require_subject)
        _check_unnamed(unnamed, files, pattern, may_be_own)
    if table and not table.lists_files:
        metadata = _select_subjects(metadata, table)
    _check_all_have_splits(metadata, files.root)
    check_subject_splits(metadata)
    return sorted(metadata, key=lambda item: item.source)


def _override(item, row, table):
    """Replace what a row of the table states."""
    if row.subject:
        item = replace(item, subject=row.subject)
    if table.lists_files:
        item = replace(item, split=row.split or item.split, position=row.position)
    return item


def _check_unnamed(
    unnamed: Sequence[FileMetadata], files: SourceFiles, pattern: str | None, may_be_own: bool
) -> None:
    """Warn of files that are subjects of their own, or refuse them."""
    example = files.root / unnamed[0].source
    if may_be_own:
        logger.warning(
            "%d files are treated as separate subjects, e.g. %s. If several files belong to one "
            "subject, name it by --pattern or --table.",
            len(unnamed),
            example,
        )
        return
    rule = pattern or "case_NNN_slice_K"
    raise InputError(
        f"{len(unnamed)} files do not match the subject pattern {rule}, e.g. {example}. Rename "
        "them, or give a --pattern with the groups subject and slice, such as "
        r"'(?P<subject>s\d+)_z(?P<slice>\d+)', or a --table with the columns file and subject."
    )


def _check_all_have_splits(metadata: Sequence[FileMetadata], root: Path) -> None:
    with_split = [item for item in metadata if item.split]
    without = [item for item in metadata if not item.split]
    if with_split and without:
        raise InputError(
            f"{len(with_split)} files have a split ({with_split[0].source} is in "
            f"{with_split[0].split!r}), {len(without)} have none ({without[0].source}). Put all "
            f"files of {root} into split folders (or give each a split in the table), or none; "
            "--no-split-folders ignores the names of the folders."
        )


def assign_splits(
    metadata: Sequence[FileMetadata], fractions: tuple[float, float, float], seed: int
) -> list[FileMetadata]:
    """Assign subjects to splits at random if the files have no splits.

    If they have train and test but not validate, a part of the subjects of train is for validate.

    Args:
        metadata: from `read_metadata`.
        fractions: as in `split_subjects`.
        seed: as in `split_subjects`.

    Returns:
        Metadata sorted by split and source, each with a split.
    """
    splits = {item.split for item in metadata}
    if None in splits:
        split_of = split_subjects((item.subject for item in metadata), fractions, seed)
        metadata = [replace(item, split=split_of[item.subject]) for item in metadata]
    elif splits == {"train", "test"}:
        subjects = (item.subject for item in metadata if item.split == "train")
        drawn = draw_validation(subjects, fractions, seed)
        metadata = [
            replace(item, split="validate") if item.subject in drawn else item for item in metadata
        ]
    return sorted(metadata, key=lambda item: (SPLITS.index(str(item.split)), item.source))


def slice_records(metadata: Sequence[FileMetadata]) -> list[SliceRecord]:
    """Return the record of each image, with its slice position.

    The position is the table's; else the slice number in the range of those of all images, 0 for
    the smallest and 1 for the largest; else, without numbers, the rank among the subject's files
    by name, of which numbers are compared as such: 2 comes before 10.

    Args:
        metadata: one item per image.

    Returns:
        Records sorted by split, subject and position.
    """
    of_subject = defaultdict(list)
    numbers = [item.slice_number for item in metadata if item.slice_number is not None]
    smallest, largest = min(numbers, default=0), max(numbers, default=0)
    for item in metadata:
        of_subject[item.subject].append(item)
    records = []
    for items in of_subject.values():
        ranks = np.linspace(0, 1, len(items)) if len(items) > 1 else [0.5]
        for item, rank in zip(sorted(items, key=_natural_order), ranks, strict=True):
            position = item.position
            if position is None and item.slice_number is not None:
                span = largest - smallest
                position = (item.slice_number - smallest) / span if span else 0.5
            records.append(item.record(float(rank if position is None else position)))
    order = (*SPLITS, "")  # a folder without splits has none
    return sorted(records, key=lambda r: (order.index(r.split), r.subject, r.position))


def _natural_order(item: FileMetadata) -> list[str | int]:
    """Sort key of the source, in which texts and numbers alternate."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", item.source)]


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
            f"{PATTERNS['image'][0]!r}. Received: pattern={pattern!r}."
        )
    return compiled


_KNOWN = {kind: tuple(map(re.compile, patterns)) for kind, patterns in PATTERNS.items()}


def _from_path(
    source: str, slice_id: str, patterns: Sequence[re.Pattern], folders: Mapping[str, str]
) -> FileMetadata:
    """The metadata that the path says; the subject is "" if no pattern matches."""
    matches = (pattern.search(source) for pattern in patterns)
    match = next((match for match in matches if match and match["subject"]), None)
    splits = (folders[part] for part in source.split("/")[:-1] if part in folders)
    return FileMetadata(
        source=source,
        subject=match["subject"] if match else "",
        slice_id=slice_id,
        split=next(splits, None),
        slice_number=_slice_number(match, source) if match else None,
    )


def _slice_ids(sources: Sequence[str], folders: Mapping[str, str]) -> list[str]:
    """The shortest id of each source that is unique: without split folders, with them, the path."""
    full = [strip_suffixes(source) for source in sources]
    ids = ["/".join(part for part in name.split("/") if part not in folders) for name in full]
    for longer in (full, sources):
        counts = Counter(short for short, _ in set(zip(ids, sources, strict=True)))
        ids = [
            name if counts[short] > 1 else short for short, name in zip(ids, longer, strict=True)
        ]
    return ids


def _slice_number(match: re.Match, source: str) -> int | None:
    text = match.groupdict().get("slice")
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(
            f"The group slice of `pattern` must match a number. Received: {text!r} in {source}."
        )
    return int(text)


def _rows_of_files(table: SourceTable | None, root: Path) -> dict[str, TableRow]:
    """Source -> row of a table of files."""
    if table is None or not table.lists_files:
        return {}
    return {(root / row.file).relative_to(root).as_posix(): row for row in table.rows}


def _select_subjects(metadata: Sequence[FileMetadata], table: SourceTable) -> list[FileMetadata]:
    """Take the files of the subjects of a table, with the splits that it names."""
    rows: dict[str, TableRow] = {}
    for row in table.rows:
        first = rows.setdefault(row.subject.removeprefix("sub-"), row)
        if first.split != row.split:
            raise InputError(
                f"{table.path}, line {row.line}: a subject must have one split. Received: "
                f"subject={row.subject!r}, split={row.split!r}, but {first.split!r} in line "
                f"{first.line}."
            )
    selected = []
    for item in metadata:
        if found := rows.get(item.subject.removeprefix("sub-")):
            selected.append(replace(item, split=found.split or item.split))
    listed = {item.subject.removeprefix("sub-") for item in selected}
    _warn_count(
        "files belong to no subject of the table",
        [item.source for item in metadata if item.subject.removeprefix("sub-") not in listed],
    )
    _warn_count(
        "subjects of the table have no files",
        [row.subject for name, row in rows.items() if name not in listed],
    )
    if not selected:
        raise InputError(
            f"The table {table.path} lists no subject of the files: its first is "
            f"{table.rows[0].subject if table.rows else 'missing'!r}, theirs is "
            f"{metadata[0].subject!r}. Give a --pattern that matches the table's names."
        )
    return selected


def _warn_count(what: str, items: Sequence[str]) -> None:
    if items:
        logger.warning("%d %s, e.g. %s: left out.", len(items), what, items[0])
