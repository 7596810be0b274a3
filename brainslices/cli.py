"""What every command shares: flags from a dataclass, one clear message, an exit status."""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from brainslices.errors import InputError

__all__ = [
    "DONE",
    "INTERRUPTED",
    "WRONG_USE",
    "suppress_backend_logs",
    "parse",
    "parse_known",
    "run",
    "print_wrapped",
    "print_error",
]

DONE, WRONG_USE, INTERRUPTED = 0, 2, 130
BACKENDS = ("tensorflow", "jax")

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], argv: Sequence[str] | None, default: Arguments | None = None
) -> Arguments:
    """Fill a dataclass from command line flags, one flag a field.

    Args:
        kind: the dataclass; nested dataclasses give their fields' plain names as flags.
        argv: the words after the command, or None for those of this process.
        default: values of the flags that are not given, if not those of the dataclass.

    Raises:
        SystemExit: with status 2 after a message on stderr, or 0 after `--help`.
    """
    import tyro

    options = {} if default is None else {"default": default}
    return tyro.cli(kind, args=argv, config=(tyro.conf.OmitArgPrefixes,), **options)


def parse_known(kind: type[Arguments], argv: Sequence[str] | None) -> Arguments:
    """Fill a dataclass from its own flags alone, leaving all others for `parse`."""
    import tyro

    return tyro.cli(kind, args=argv, return_unknown_args=True, add_help=False)[0]


def _check_backend() -> None:
    backend = os.environ.get("KERAS_BACKEND", BACKENDS[0])
    if backend not in BACKENDS:
        raise InputError(f"KERAS_BACKEND must be {' or '.join(BACKENDS)}. Received: {backend!r}.")
    if importlib.util.find_spec(backend) is None:
        raise InputError(
            f"KERAS_BACKEND is {backend}, which is not installed. "
            f"Run `pip install -e .[{backend}]`, or unset the variable."
        )


def _wake_devices() -> None:
    # A block that has not imported Keras does not pay for it. Under JAX, processes that train
    # together meet before any of them looks at its devices.
    is_distributed = any(name.startswith("KERAS_DISTRIBUTION_") for name in os.environ)
    if "keras" in sys.modules and not is_distributed:
        import keras

        keras.distribution.list_devices()


@contextlib.contextmanager
def suppress_backend_logs() -> Iterator[None]:
    """Keep off the terminal what TensorFlow's C++ writes while it loads; shown if that fails.

    It notes a missing GPU and its own optimisations on every start, before any log level applies.

    Raises:
        InputError: if the backend that KERAS_BACKEND names cannot be had.
    """
    _check_backend()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
            _wake_devices()
        except Exception:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def print_wrapped(text: str) -> None:
    """Print a paragraph; on a terminal its lines break between words."""
    sys.stdout.write(_folded(text, sys.stdout) + "\n")


def _folded(text, stream):
    if not stream.isatty():
        return text
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, shutil.get_terminal_size().columns, **options)


def run(main: Callable[[], None]) -> int:
    """Run a command.

    Args:
        main: the command; it raises `InputError` or `OSError` for what the user can mend.

    Returns:
        Exit status: 0 done, 2 wrong use or bad input (a message on stderr, no traceback),
        130 stopped by the user.
    """
    try:
        with _terminable():
            main()
    except (InputError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt as stop:
        told = f"stopped. {stop}" if str(stop) else "stopped."
        sys.stderr.write(f"\n{_folded(told, sys.stderr)}\n")
        return INTERRUPTED
    return DONE


@contextlib.contextmanager
def _terminable():
    """Let SIGTERM end a command as Ctrl-C does, so that no half-written file is left."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_error(error: InputError | OSError) -> int:
    """Write the message of what the user can mend to stderr; returns the exit status for it."""
    message = str(error) if isinstance(error, InputError) else _explain(error)
    sys.stderr.write(_folded(f"error: {message}", sys.stderr) + "\n")
    return WRONG_USE


def _explain(error: OSError) -> str:
    name = error.filename  # or the number of an open file
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None
    if place and place.name.startswith(".") and not place.is_dir():
        place = place.parent  # the file itself is one of ours, and never seen
    where = f" ({place})" if place else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}. Free some space and run the same command again."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"No permission to write{where}. Change that, or choose another folder."
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"A file lies where a folder is needed{where}. Move it, or choose another folder."
    return f"{error.strerror or error}{where}."
