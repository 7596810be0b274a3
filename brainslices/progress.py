"""Progress of long work: a bar with a rate and an ETA on a terminal, plain lines when piped."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["bar", "track"]

Item = TypeVar("Item")

# Piped, a line every half minute tells that work goes on without filling a log.
PLAIN_INTERVAL_S = 30.0


class _PlainLines(tqdm):
    """tqdm that prints a line of its own now and then instead of redrawing one."""

    @staticmethod
    def status_printer(file):
        def write(text: str) -> None:
            if text.strip():
                file.write(text.strip() + "\n")
                file.flush()

        return write


def bar(
    total: int | None, description: str, unit: str, initial: int = 0, silent: bool = False
) -> tqdm:
    """A tqdm bar on stderr; redrawn on a terminal, one line each half minute when piped.

    Args:
        total: number of units to come, or None if unknown.
        description: what is being done, in a word or two.
        unit: what is counted, such as "slices".
        initial: units already done.
        silent: show nothing, where another process tells the same.
    """
    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
    common["disable"] = silent
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True, leave=True)
    intervals = {"mininterval": PLAIN_INTERVAL_S, "maxinterval": PLAIN_INTERVAL_S, "miniters": 1}
    return _PlainLines(**common, **intervals, delay=PLAIN_INTERVAL_S, ncols=0, leave=False)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield the items of an iterable while showing progress over them."""
    with bar(total, description, unit) as shown:
        for item in items:
            yield item
            shown.update(1)
