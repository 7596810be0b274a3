"""The error boundary around the reading of one file."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from brainslices.errors import CorruptFileError, InputError
from brainslices.types import PathLike

__all__ = ["reading"]

# Errors of the system for a corrupt header (a position before the start of the file, too much
# memory) and for a missing second file of a pair (.img, .hdr).
CORRUPT_ERRNOS = (errno.EINVAL, errno.ENOMEM, errno.EOVERFLOW, errno.EFBIG, errno.ENOENT)


@contextlib.contextmanager
def reading(path: PathLike, kind: str, hint: str) -> Iterator[None]:
    """Convert any exception of a decoder or a check into an error that names the file.

    The block must hold the reading and its checks alone: decoders raise nearly any exception.

    Args:
        path: the file.
        kind: what the file should be: "image", "volume".
        hint: likely causes and the repair, as sentences.

    Raises:
        CorruptFileError: if the block raises for the file's content, or the file is missing.
        InputError: if the system cannot read the file, which is then not called corrupt; or as
            the block raises, with the file's name.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a pipe or a device, not a file. {hint}")  # it would block
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise CorruptFileError(f"{path}: {error} {hint}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, *CORRUPT_ERRNOS):
            repair = "Make it readable." if isinstance(error, PermissionError) else hint
            raise InputError(f"{path} cannot be read: {error.strerror}. {repair}") from error
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        if path.is_file() and not path.stat().st_size:
            reason = "the file is empty"
        raise CorruptFileError(f"{path} is not a readable {kind} ({reason}). {hint}") from error
