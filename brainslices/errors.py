"""The one exception that means "the user can mend this"."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Wrong use or bad input: its message says what was expected, what came and how to mend it.

    Commands print the message alone on stderr and exit with status 2; any other exception is a
    defect of ours and keeps its traceback.
    """
