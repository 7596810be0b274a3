"""Aligned text tables for the terminal."""

from collections.abc import Mapping, Sequence

__all__ = ["format_interval", "format_table"]


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


def format_interval(scores: Mapping[str, float], name: str, digits: int) -> str:
    """Format the score `name` with its interval, `name_low` to `name_high`.

    Example:
        >>> format_interval({"ssim": 0.968, "ssim_low": 0.967, "ssim_high": 0.969}, "ssim", 2)
        '0.97 [0.97, 0.97]'
    """
    value, low, high = (f"{scores[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"
