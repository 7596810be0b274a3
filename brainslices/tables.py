"""Aligned text tables for the terminal."""

from collections.abc import Sequence

__all__ = ["format_table"]


def format_table(rows: Sequence[Sequence[object]], align: str = "<") -> str:
    """Align rows of cells in columns two spaces apart.

    Args:
        rows: equally long rows; `None` is an empty cell.
        align: "<" or ">" for each column; the last one counts for all columns after it.

    Returns:
        A line for each row, without trailing spaces.

    Example:
        >>> print(format_table([("split", "slices"), ("train", 12), ("test", 4)], "<>"))
        split  slices
        train      12
        test        4
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align + align[-1] * (len(widths) - len(align))
    formats = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    return "\n".join("  ".join(formats).format(*row).rstrip() for row in cells)
