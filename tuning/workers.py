"""Call functions in fresh Python processes, which free their memory and may crash alone.

`multiprocessing` with pickled arguments and results, not `subprocess` with JSON: configurations,
paths and arrays pass unchanged, and each side notices the death of the other without a protocol of
our own (`parent_process().join()`, end of file on the pipe).
"""

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

__all__ = ["GRACE_S", "CallFailed", "call", "spawn", "stop"]

Result = TypeVar("Result")

CONTEXT = multiprocessing.get_context("spawn")
# After SIGTERM a training finishes its step and writes a checkpoint.
GRACE_S = 60.0
MAX_REASON_LENGTH = 300


class CallFailed(RuntimeError):
    """A process ended without a result.

    Args:
        reason: one line.
        is_killed: whether the process died (a signal, an exit) instead of raising an exception.
    """

    def __init__(self, reason: str, is_killed: bool = False):
        super().__init__(reason)
        self.is_killed = is_killed


def call(
    function: Callable[..., Result],
    *arguments: object,
    log: Path | None = None,
) -> Result:
    """Call a module-level function in a fresh Python process and return its result.

    Args:
        function: a module-level function; its arguments and its result are pickled.
        *arguments: arguments of the function.
        log: as in `spawn`.

    Raises:
        InputError: if the function raised it.
        OSError: if the function raised it.
        CallFailed: if the function raised anything else, or its process died.
        KeyboardInterrupt: if this process is interrupted; the child is stopped first.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    path = _module_and_name(function)
    process = spawn(_send_result, sender, *path, arguments, log=log)
    sender.close()
    try:
        reply = receiver.recv()
    except EOFError:
        reply = None
    except BaseException:
        stop([process])
        raise
    process.join(GRACE_S)
    stop([process], grace=0)  # the reply has arrived: nothing is lost
    if reply is None:
        raise CallFailed(_describe_exit(process.exitcode, log), is_killed=True)
    error, result = reply
    if error is not None:
        raise error
    return result


def spawn(
    function: Callable[..., None],
    *arguments: object,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a module-level function in a process that never outlives this one.

    The child is in its own session, so it receives no signals from the terminal. SIGTERM raises
    KeyboardInterrupt in it.

    Args:
        function: a module-level function; its arguments are pickled.
        *arguments: arguments of the function.
        log: file that the child's output is appended to; by default it shares this terminal.
        environment: variables set before the function's module is imported.
    """
    options = (log, dict(environment or {}))
    path = _module_and_name(function)
    process = CONTEXT.Process(target=_child_main, args=(options, *path, arguments))
    process.start()
    return process


def stop(processes: Sequence[BaseProcess], grace: float = GRACE_S) -> None:
    """Send SIGTERM to processes, and SIGKILL to those still alive after `grace` seconds."""
    processes = [process for process in processes if process.is_alive()]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _module_and_name(function):
    # Pickled by name: unpickling the function itself would import its module too early.
    return function.__module__, function.__qualname__


def _child_main(options, module, name, arguments):
    log, environment = options
    os.setsid()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.update(environment)
    if log is not None:
        _redirect_output(log)
    try:
        with cli.printable_output():
            _import(module, name)(*arguments)
    except KeyboardInterrupt:  # requested by the parent: no traceback
        sys.exit(cli.INTERRUPTED)


def _raise_interrupt(number, frame):
    raise KeyboardInterrupt


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _redirect_output(log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _import(module, name):
    with cli.suppress_backend_logs():
        return getattr(importlib.import_module(module), name)


def _send_result(sender, module, name, arguments):
    """Run in the child: send (None, result), or (exception, None) with one that can be pickled."""
    error, result = None, None
    try:
        result = _import(module, name)(*arguments)
    except InputError as raised:
        error = InputError(str(raised))
    except Exception as raised:
        traceback.print_exc()
        error = CallFailed(_one_line(raised))
        if isinstance(raised, OSError) and raised.errno is not None:
            error = OSError(raised.errno, raised.strerror, raised.filename)
    with contextlib.suppress(BrokenPipeError):
        sender.send((error, result))


def _one_line(error):
    """Shorten the message of a library's exception, which may fill pages."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    return textwrap.shorten(message, MAX_REASON_LENGTH, placeholder=" ...")


def _describe_exit(exit_code, log):
    see = f"; its output is in {log}" if log else ""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}{see}"
    return f"its process ended with status {exit_code} and no result{see}"
