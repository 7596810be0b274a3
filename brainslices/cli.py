"""Shared by all commands: flags from a dataclass, error messages, exit statuses."""

import contextlib
import errno
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from brainslices.errors import InputError
from brainslices.progress import escape

__all__ = [
    "DONE",
    "INTERRUPTED",
    "WRONG_USE",
    "parse",
    "parse_known",
    "print_error",
    "print_wrapped",
    "printable_output",
    "run",
    "share_gpu_memory",
    "suppress_backend_logs",
]

DONE, WRONG_USE, INTERRUPTED = 0, 2, 130

Arguments = TypeVar("Arguments")


def parse(
    arguments_type: type[Arguments], argv: Sequence[str] | None, default: Arguments | None = None
) -> Arguments:
    """Build a dataclass from command-line flags, one flag per field.

    Args:
        arguments_type: the dataclass; the fields of nested dataclasses are flags without prefix.
        argv: the arguments after the command, or None for those of this process.
        default: replaces the defaults of the dataclass.

    Raises:
        SystemExit: with status 2 after a message on stderr, or 0 after `--help`.
    """
    import tyro

    default = tyro.MISSING_NONPROP if default is None else default
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(arguments_type, args=argv, config=config, default=default)


def parse_known(arguments_type: type[Arguments], argv: Sequence[str] | None) -> Arguments:
    """Build a dataclass from its own flags and ignore all others, `--help` among them."""
    import tyro

    return tyro.cli(arguments_type, args=argv, return_unknown_args=True, add_help=False)[0]


def _initialize_devices() -> None:
    # A block that has not imported Keras does not pay for it. Under JAX, processes that train
    # together have to connect before any of them lists devices.
    is_distributed = any(name.startswith("KERAS_DISTRIBUTION_") for name in os.environ)
    if "keras" in sys.modules and not is_distributed:
        import keras

        keras.distribution.list_devices()


def share_gpu_memory() -> None:
    """Let backends that are imported later allocate GPU memory as they need it, not all at once."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@contextlib.contextmanager
def suppress_backend_logs() -> Iterator[None]:
    """Hide what TensorFlow's C++ logs while it is imported; print it if the import fails.

    TensorFlow reports a missing GPU and its CPU optimisations before any log level applies.

    Raises:
        InputError: if Keras cannot be imported, or runs on a backend that is not supported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
            _initialize_devices()
        except InputError:
            raise
        except Exception:
            from brainslices import keras_setup  # noqa: F401  raises if Keras is the reason

            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def print_wrapped(text: str) -> None:
    """Print a paragraph, wrapped at the width of the terminal if there is one."""
    sys.stdout.write(_wrapped(escape(text), sys.stdout) + "\n")


def _wrapped(text, stream):
    if not stream.isatty():
        return text
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, shutil.get_terminal_size().columns, **options)


def run(main: Callable[[], None]) -> int:
    """Run a command.

    Args:
        main: the command; it raises `InputError` or `OSError` for errors that the user can fix.

    Returns:
        Exit status: 0 success, 2 wrong use or invalid input (a message on stderr, no traceback),
        130 interrupted.
    """
    try:
        with _sigterm_as_interrupt(), printable_output():
            main()
    except (InputError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt as interrupt:
        message = f"stopped. {interrupt}".rstrip()
        sys.stderr.write(f"\n{_wrapped(escape(message), sys.stderr)}\n")
        return INTERRUPTED
    return DONE


class _WarningFormatter(logging.Formatter):
    def formatMessage(self, record):  # noqa: N802  of the base class
        return _wrapped(escape(f"{record.levelname.lower()}: {record.message}"), sys.stderr)


class _WarningHandler(logging.StreamHandler):
    """Print to stderr, above the progress bars."""

    def emit(self, record):
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Print warnings as lines to stderr, and what the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = _WarningHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_WarningFormatter())
    previous, logging.lastResort = logging.lastResort, handler
    try:
        yield
    finally:
        logging.lastResort = previous


@contextlib.contextmanager
def _sigterm_as_interrupt():
    """Handle SIGTERM like Ctrl-C, so that temporary files are removed."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_error(error: InputError | OSError) -> int:
    """Print the message of an error that the user can fix to stderr; return the exit status."""
    message = str(error) if isinstance(error, InputError) else _describe(error)
    message = " ".join([message, *getattr(error, "__notes__", ())])
    sys.stderr.write(_wrapped(f"error: {escape(message)}", sys.stderr) + "\n")
    return WRONG_USE


def _is_unreadable(path: Path) -> bool:
    """Whether a file, or the folder that it is in, cannot be read."""
    if os.path.lexists(path):
        return not os.access(path, os.R_OK)
    return os.path.isdir(path.parent) and not os.access(path.parent, os.X_OK)


def _describe(error: OSError) -> str:
    name = error.filename  # None, a path, or the number of an open file
    path = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None
    if path and path.name.startswith(".") and not os.path.isdir(path):
        path = path.parent  # a temporary file of ours, which the user does not know
    where = f" ({path})" if path else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}. Free some space and run the same command again."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        action = "read" if path and _is_unreadable(path) else "write"
        return f"No permission to {action}{where}. Change the permission, or choose another folder."
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"A file exists where a folder is needed{where}. Move it, or choose another folder."
    return f"{error.strerror or error}{where}."
