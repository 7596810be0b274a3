"""Names of runs and results in a report."""

from collections.abc import Sequence
from pathlib import Path

from brainslices.errors import InputError

__all__ = ["check_different_names", "folder_name"]


def folder_name(path: Path) -> str:
    """Return the name of a folder after that of the folder that it is in, such as "runs/vqvae"."""
    return "/".join(path.resolve().parts[-2:])


def check_different_names(argument: str, names: Sequence[tuple[str, Path]]) -> None:
    """Refuse folders that a report or a figure could not tell apart.

    Args:
        argument: what lists the folders, for the message.
        names: name that it shows, and folder.

    Raises:
        InputError: if a name occurs twice.
    """
    seen: dict[str, Path] = {}
    for name, path in names:
        if name in seen:
            raise InputError(
                f"`{argument}` must have different names. Received: {name!r} for both {seen[name]} "
                f"and {path}. Rename one of them, or leave it out."
            )
        seen[name] = path
