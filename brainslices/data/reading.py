"""The error boundary around the reading of one file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["reading"]


@contextlib.contextmanager
def reading(path: PathLike, kind: str, hint: str) -> Iterator[None]:
    """Turn whatever a decoder raises for a corrupt file into an error that names the file.

    The block must hold calls of the decoder alone: decoders raise nearly any exception.

    Args:
        path: the file.
        kind: what the file should be: "image", "volume".
        hint: likely causes and the repair, as sentences.

    Raises:
        InputError: if the block raises.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        path = Path(path)
        reason = str(error) or type(error).__name__
        if path.is_file() and not path.stat().st_size:
            reason = "the file is empty"
        raise InputError(f"{path} is not a readable {kind} ({reason}). {hint}") from error
