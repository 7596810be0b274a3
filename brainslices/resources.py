"""Check of the memory and disk that a request needs."""

import os
import shutil
from pathlib import Path

from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["TRAINING_BYTES", "check_needed"]

GIGABYTE = 1e9
# Least memory of one weight in training: float32, its gradient and one moment of the optimizer.
TRAINING_BYTES = 12


def check_needed(
    what: str, *, memory: float = 0, disk: float = 0, folder: PathLike | None = None
) -> None:
    """Refuse a request that this machine cannot meet, before any work.

    Args:
        what: the arguments and their values, for the message: "count=1000000000".
        memory: bytes that it needs at least, of the machine's main memory.
        disk: bytes that it needs at least in `folder`, which may be missing.
        folder: the output folder.

    Raises:
        InputError: if there is less.
    """
    if hasattr(os, "sysconf"):
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        _compare(what, memory, installed, "of memory, but this machine has")
    if folder is not None:
        absolute = Path(folder).absolute()
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        _compare(what, disk, free, f"on disk, but {existing} has")


def _compare(what, needed, available, where):
    if needed > available:
        raise InputError(
            f"{what} would need at least {needed / GIGABYTE:.3g} GB {where} "
            f"{available / GIGABYTE:.3g} GB. Give smaller values."
        )
