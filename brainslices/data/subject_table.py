"""The table of an archive's subjects, `subjects.csv`: age, sex and other attributes."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainslices.csv_files import read_rows, write_rows
from brainslices.data.source_table import MISSING, find_columns, read_cells
from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.types import PathLike

__all__ = [
    "SubjectTable",
    "describe",
    "is_numeric",
    "load_subjects",
    "read_subject_table",
    "save_subjects",
    "select_subjects",
]

# As tables of BIDS, R and pandas write them.
_UNKNOWN = (*MISSING, "na", "nan", "null")
SubjectTable = Mapping[str, Mapping[str, str]]
"""Subject -> column -> cell; "" is unknown."""


def read_subject_table(path: PathLike) -> SubjectTable:
    """Read a user's table: CSV or TSV with a column of subjects, such as BIDS participants.tsv.

    Empty cells, n/a, NA, NaN and null are unknown.

    Raises:
        InputError: if it cannot be read, has no column of subjects or no other, or names a subject
            twice or not at all.
    """
    cells = read_cells(path)
    header = list(next(iter(cells.values()), ()))
    key = find_columns(header).get("subject")
    others = [name.strip() for name in header if name != key]
    # The archive's table calls the key subject.
    if key is None or not others or len({"subject", *others}) <= len(others):
        raise InputError(
            f"The table {path} must have one column subject (or participant_id), at least one "
            "other column, each with a name of its own, and a row for each subject. Received: "
            f"{', '.join(header) or 'none'}."
        )
    table: dict[str, dict[str, str]] = {}
    names: set[str] = set()
    for line, row in cells.items():
        known = {
            name.strip(): "" if cell.strip().lower() in _UNKNOWN else cell.strip()
            for name, cell in row.items()
        }
        subject = known.pop(key.strip())
        name = subject.removeprefix("sub-")
        if not name or name in names:
            raise InputError(
                f"{path}, line {line}: each row must name another subject. Received: "
                f"{key}={row[key]!r}."
            )
        names.add(name)
        table[subject] = known
    return table


def select_subjects(table: SubjectTable, subjects: Iterable[str]) -> tuple[SubjectTable, list[str]]:
    """Match a table to an archive's subjects, with or without BIDS's prefix "sub-".

    Returns:
        The rows of the subjects that have one, and the subjects without.

    Raises:
        InputError: if no subject has a row.
    """
    rows = {name.removeprefix("sub-"): row for name, row in table.items()}
    names = list(dict.fromkeys(subjects))
    found = {
        name: rows[name.removeprefix("sub-")] for name in names if name.removeprefix("sub-") in rows
    }
    if not found:
        raise InputError(
            "`subject-table` must name the subjects of the source, such as "
            f"{names[0]!r}. Received: {next(iter(table))!r} and {len(table) - 1} others."
        )
    return found, [name for name in names if name not in found]


def save_subjects(path: Path, table: SubjectTable) -> None:
    """Write `subjects.csv`."""
    write_rows(path, [{"subject": name, **row} for name, row in table.items()])


def load_subjects(archive: PathLike) -> SubjectTable:
    """Read the `subjects.csv` of an archive; an empty table if it has none.

    Raises:
        InputError: if it is corrupt.
    """
    path = Path(archive) / "subjects.csv"
    if not path.exists():
        return {}
    with reading(path, "table of subjects", "Prepare the archive again."):
        rows = read_rows(path).values()
        table = {row.pop("subject"): row for row in rows}
        if len(table) < len(rows):
            raise ValueError("it names a subject twice")
        return table


def is_numeric(cells: Iterable[str]) -> bool:
    """Return whether all known cells of a column are finite numbers.

    Example:
        >>> is_numeric(["74", "", "0.5"]), is_numeric(["F", "1"])
        (True, False)
    """
    try:
        return all(math.isfinite(float(cell)) for cell in cells if cell)
    except ValueError:
        return False


def describe(table: SubjectTable) -> str:
    """List the columns of a table with their kinds and values, in one line."""
    parts = []
    for column in next(iter(table.values()), ()):
        cells = [row[column] for row in table.values() if row[column]]
        if not cells:
            parts.append(f"{column} (blank)")
        elif is_numeric(cells):
            low, high = min(map(float, cells)), max(map(float, cells))
            parts.append(f"{column} (number, {low:g} to {high:g})")
        else:
            values = sorted(set(cells))
            listed = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
            parts.append(f"{column} ({len(values)} categories: {listed})")
    return ", ".join(parts)
