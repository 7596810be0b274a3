"""The exception for errors that the user can fix, and those that a corrupt file raises."""

import tokenize
import zipfile
import zlib

__all__ = ["CORRUPT_FILE_ERRORS", "InputError"]

CORRUPT_FILE_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy, zipfile and Keras raise for a corrupt .npz or .keras file."""


class InputError(ValueError):
    """Wrong use or invalid input.

    The message says what was expected, what was received and how to fix it. Commands print only
    the message on stderr and exit with status 2; any other exception is a bug of this package and
    keeps its traceback.
    """
