"""The table of a source: CSV or TSV, with a row for each file or for each subject.

Column names are compared without case, and the usual names of BIDS, OASIS and ADNI are known.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainslices.csv_files import read_rows, sniff_delimiter
from brainslices.data.splits import normalize_split
from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["MISSING", "SourceTable", "TableRow", "find_columns", "read_cells", "read_table"]

COLUMNS = {
    "file": (
        *("file", "filename", "file_name", "filepath", "file_path", "path", "image"),
        *("image_path", "imagepath"),
    ),
    "subject": (
        *("subject", "subject_id", "subjectid", "participant_id", "participant", "patient_id"),
        *("patientid", "patient", "ptid", "mri_id"),
    ),
    "split": ("split", "partition", "subset", "set"),
    "position": ("position", "slice_position"),
}
MISSING = ("", "n/a")


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Args:
        line: number of its line.
        file: path below the source, "" in a table of subjects.
        subject: subject, or "" if the path names it.
        split: `train`, `validate` or `test`, or None.
        position: slice position in [0, 1], or None.
    """

    line: int
    file: str = ""
    subject: str = ""
    split: str | None = None
    position: float | None = None


@dataclass(frozen=True)
class SourceTable:
    """The rows of a table; it lists files or, without a column of files, subjects."""

    path: Path
    rows: list[TableRow]
    lists_files: bool


def read_table(path: PathLike) -> SourceTable:
    """Read a table with the columns `file` and `subject`, or one of them.

    Raises:
        InputError: if it cannot be read, lacks both columns, or a row is invalid.
    """
    path = Path(path)
    cells = read_cells(path)
    header = list(next(iter(cells.values()), ()))
    column_of = find_columns(header)
    repeated = [name for name in header if _normalize(name) in map(_normalize, column_of.values())]
    if len(repeated) > len(column_of) or not {"file", "subject"} & set(column_of):
        raise InputError(
            f"The table {path} must have the columns file and subject, or one of them, optionally "
            "split and position, each once, and a row for each file or subject. Received: "
            f"{', '.join(header) or 'none'}."
        )
    if "file" not in column_of:  # all slices of a subject would have one position
        column_of.pop("position", None)
    rows: list[TableRow] = []
    for line, row in cells.items():
        values = {name: row[column].strip() for name, column in column_of.items()}
        try:
            rows.append(_parse_row(line, values))
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return SourceTable(path, rows, "file" in column_of)


def read_cells(path: PathLike) -> dict[int, dict[str, str]]:
    """Read a CSV or TSV table: line number -> column -> cell.

    Raises:
        InputError: if it cannot be read.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        return read_rows(path, sniff_delimiter(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The table {path} cannot be read ({error}). Give a CSV or TSV file in UTF-8."
        ) from error


def _normalize(column: str) -> str:
    return re.sub(r"[ \-]", "_", column.strip().lower())


def find_columns(header: list[str]) -> dict[str, str]:
    """Return canonical name -> name in the header, for each column with a known alias."""
    names = {_normalize(name): name for name in reversed(header)}
    found = {
        column: next((names[alias] for alias in aliases if alias in names), None)
        for column, aliases in COLUMNS.items()
    }
    return {column: name for column, name in found.items() if name is not None}


def _parse_row(line: int, values: dict[str, str]) -> TableRow:
    for column in ("file", "subject"):
        if values.get(column, "-") in MISSING:
            raise InputError(f"`{column}` must not be empty. Received: {_describe(values)}.")
    split, position = values.get("split", ""), values.get("position", "")
    return TableRow(
        line=line,
        file=values.get("file", ""),
        subject=values.get("subject", ""),
        split=None if split.lower() in MISSING else normalize_split(split),
        position=None if position.lower() in MISSING else _parse_position(position),
    )


def _describe(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _parse_position(text: str) -> float:
    try:
        position = float(text)
    except ValueError:
        position = np.nan
    if not 0 <= position <= 1:
        raise InputError(f"`position` must be a number in [0, 1]. Received: position={text!r}.")
    return position
