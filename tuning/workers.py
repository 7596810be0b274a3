"""Work in processes of its own: what one allocates or breaks, the next does not feel."""

import contextlib
import importlib
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from brainslices import cli
from brainslices.errors import InputError

__all__ = ["CallFailed", "call", "spawn", "stop"]

Result = TypeVar("Result")

CONTEXT = multiprocessing.get_context("spawn")
# A stopped training finishes its step and saves its state first.
GRACE_S = 60.0
REASON_LENGTH = 300


class CallFailed(RuntimeError):
    """The work ended without a result.

    Args:
        reason: why, in one line.
        killed: whether its process ended by a signal instead of an error.
    """

    def __init__(self, reason: str, killed: bool = False):
        super().__init__(reason)
        self.killed = killed


def call(
    function: Callable[..., Result],
    *arguments: object,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Call a module's function in a fresh Python, where nothing was imported or allocated yet.

    Args:
        function: of a module; it, its arguments and its result are pickled.
        *arguments: of the function.
        log: as `spawn`.
        environment: as `spawn`.

    Raises:
        InputError, OSError: as the function raised it.
        CallFailed: if it raised anything else, or its process was killed.
        KeyboardInterrupt: this process was stopped; the other one was asked to stop first.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    words = (sender, *_name(function), arguments)
    process = spawn(_answer, *words, log=log, environment=environment)
    sender.close()
    try:
        kind, value = receiver.recv()
    except EOFError:
        kind, value = "killed", None
    except BaseException:
        stop([process])
        raise
    process.join(GRACE_S)
    stop([process], grace=0)  # what has answered has nothing left to do
    if kind == "killed":
        raise CallFailed(_describe_end(process.exitcode), killed=True)
    if kind == "wrong input":
        raise InputError(value)
    if kind == "system error":
        raise value
    if kind == "failed":
        raise CallFailed(value)
    return value


def spawn(
    function: Callable[..., None],
    *arguments: object,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
) -> BaseProcess:
    """Start a module's function in a process that ends, whatever happens, when this one does.

    Signals from the terminal do not reach it; SIGTERM raises KeyboardInterrupt in it.

    Args:
        function: of a module; it and its arguments are pickled.
        *arguments: of the function.
        log: file that what it writes is added to; by default it shares this process's terminal.
        environment: variables to set before its module is imported.
        cores: processor cores that it may use, all of this process's by default.
    """
    surroundings = (log, dict(environment or {}), cores)
    process = CONTEXT.Process(target=_child_main, args=(surroundings, *_name(function), arguments))
    process.start()
    return process


def stop(processes: Sequence[BaseProcess], grace: float = GRACE_S) -> None:
    """Ask processes to stop, wait for them, and kill those that have not after `grace` seconds."""
    processes = [process for process in processes if process.is_alive()]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _name(function):
    return function.__module__, function.__qualname__


def _child_main(surroundings, module, name, arguments):
    log, environment, cores = surroundings
    os.setsid()
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if log is not None:
        _write_to(log)
    try:
        _find(module, name)(*arguments)
    except KeyboardInterrupt:  # asked for: no traceback
        sys.exit(cli.INTERRUPTED)


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_to(log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _find(module, name):
    with cli.suppress_backend_logs():
        return getattr(importlib.import_module(module), name)


def _answer(sender, module, name, arguments):
    try:
        answer = ("value", _find(module, name)(*arguments))
    except InputError as error:
        answer = ("wrong input", str(error))
    except Exception as error:
        traceback.print_exc()
        answer = ("failed", _in_a_line(error))
        if isinstance(error, OSError) and error.errno is not None:
            answer = ("system error", OSError(error.errno, error.strerror, error.filename))
    with contextlib.suppress(BrokenPipeError):
        sender.send(answer)


def _in_a_line(error):
    """An error's own words; those of a library may run to pages."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}").split()
    return textwrap.shorten(" ".join(words), REASON_LENGTH, placeholder=" ...")


def _describe_end(exit_code):
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with status {exit_code} and no result"
