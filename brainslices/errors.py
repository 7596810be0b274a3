"""The exceptions for errors that the user can fix."""

__all__ = ["CorruptFileError", "InputError"]


class InputError(ValueError):
    """Wrong use or invalid input.

    The message says what was expected, what was received and how to fix it. Commands print only
    the message on stderr and exit with status 2; any other exception is a bug of this package and
    keeps its traceback.
    """


class CorruptFileError(InputError):
    """A file that can be read, but does not hold what it should."""
