"""Output of commands: lines of text, and progress with a rate and an ETA.

Progress is a bar on a terminal, plain lines when piped.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

__all__ = ["bar", "escape", "print_lines", "track"]

Item = TypeVar("Item")

# Piped, one line every half minute shows progress without filling a log.
PLAIN_INTERVAL_S = 30.0


def escape(text: str) -> str:
    r"""Escape control characters.

    Names of files may hold them: they move the cursor, or colour the terminal.

    Example:
        >>> print(escape("a\rb\x1b[2Jé.png"))
        a\rb\x1b[2Jé.png
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_lines(text: object) -> None:
    """Print lines to stdout, above the progress bars, with control characters escaped."""
    tqdm.write("\n".join(map(escape, str(text).split("\n"))))
    sys.stdout.flush()


class _LineStream:
    """Write what tqdm draws as lines, without its carriage returns: for pipes and log files."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def bar(
    total: int | None, description: str, unit: str, initial: int = 0, silent: bool = False
) -> tqdm:
    """Open a tqdm bar on stderr: redrawn on a terminal, one line each half minute when piped.

    Args:
        total: number of units, or None if unknown.
        description: a word or two in front of the bar.
        unit: name of the unit, such as "slices".
        initial: units already done.
        silent: show nothing, where another process shows the same.
    """
    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
    common["disable"] = silent
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True, leave=True)
    intervals = {"mininterval": PLAIN_INTERVAL_S, "maxinterval": PLAIN_INTERVAL_S, "miniters": 1}
    lines = {"file": _LineStream(sys.stderr), "ncols": 0, "leave": False}
    return tqdm(**common, **intervals, **lines, delay=PLAIN_INTERVAL_S)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield the items of an iterable while showing progress over them."""
    with bar(total, description, unit) as progress_bar:
        for item in items:
            yield item
            progress_bar.update(1)
