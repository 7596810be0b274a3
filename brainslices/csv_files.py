"""Strict reading of CSV files, and their writing."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainslices.types import PathLike

__all__ = ["read_rows", "sniff_delimiter", "write_rows"]


def read_rows(path: PathLike, delimiter: str = ",") -> dict[int, dict[str, str]]:
    """Read the rows of a CSV file with a header.

    Returns:
        Line number -> column -> cell. Empty lines are skipped.

    Raises:
        ValueError: if the file is not UTF-8, a quote is not closed, a column occurs twice, or a
            row has more or fewer cells than the header.
        OSError: if the file cannot be read.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    columns = lines[0][1] if lines else []
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"the header must name each column once. Received: {repeated}")
    for line, cells in lines:
        if len(cells) != len(columns):
            raise ValueError(f"line {line} must have {len(columns)} cells. Received: {cells}")
    return {line: dict(zip(columns, cells, strict=True)) for line, cells in lines[1:]}


def sniff_delimiter(path: PathLike) -> str:
    """Return the delimiter of a table by its header: a tab, a semicolon or a comma.

    Raises:
        ValueError: if the file is not UTF-8.
        OSError: if the file cannot be read.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        header = file.readline(1 << 16)
    return max(",\t;", key=header.count)


def write_rows(path: PathLike, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, at least one and all with the same columns, under a header."""
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
