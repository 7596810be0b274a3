"""The one exception that means "the user can mend this", and those that it stands for."""

import tokenize
import zipfile
import zlib

__all__ = ["CORRUPT_FILE_ERRORS", "InputError"]

CORRUPT_FILE_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy, zipfile and Keras raise for a damaged .npz or .keras file."""


class InputError(ValueError):
    """Wrong use or bad input: its message says what was expected, what came and how to mend it.

    Commands print the message alone on stderr and exit with status 2; any other exception is a
    defect of ours and keeps its traceback.
    """
