"""Real processes that call functions of this file."""

import contextlib
import errno
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import python

from brainslices.errors import InputError
from tuning.workers import CallFailed, call, spawn, stop


def square(number):
    sys.stdout.write(f"squares {number}\n")
    return {"square": number**2, "pid": os.getpid()}


def fail(how):
    if how == "input":
        raise InputError("no such slice")
    if how == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "state.npz")
    if how == "bug":
        raise ZeroDivisionError("too\nlong")
    os.kill(os.getpid(), signal.SIGKILL)


def print_word():
    sys.stdout.write(os.environ.get("WORD", "no word"))


def sleep(path):
    """Write this process's number, then whether it was interrupted."""
    Path(path).write_text(str(os.getpid()))
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        Path(path).write_text("interrupted")
        raise


def wait_for_text(path, timeout=60):
    deadline = time.monotonic() + timeout
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.slow
def test_result_comes_from_a_process_with_its_own_log(tmp_path):
    log = tmp_path / "logs" / "log.txt"
    result = call(square, 7, log=log)
    assert result["square"] == 49
    assert result["pid"] != os.getpid()
    assert call(square, 8, log=log)["square"] == 64
    assert log.read_text() == "squares 7\nsquares 8\n"


@pytest.mark.slow
def test_process_has_its_own_environment(tmp_path):
    log = tmp_path / "log.txt"
    process = spawn(print_word, log=log, environment={"WORD": "value"})
    process.join(60)
    assert (process.exitcode, log.read_text()) == (0, "value")
    assert "WORD" not in os.environ


@pytest.mark.slow
def test_errors_of_the_child_are_raised_in_the_parent(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(InputError, match="^no such slice$"):
        call(fail, "input", log=log)
    with pytest.raises(OSError, match="No space left") as error:
        call(fail, "disk", log=log)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "state.npz")
    with pytest.raises(CallFailed, match="^ZeroDivisionError: too long$") as failed:
        call(fail, "bug", log=log)
    assert not failed.value.is_killed
    assert "Traceback" in log.read_text()
    with pytest.raises(CallFailed, match="killed by SIGKILL") as failed:
        call(fail, "kill")
    assert failed.value.is_killed


@pytest.mark.slow
def test_stopped_process_is_interrupted_before_it_is_killed(tmp_path):
    path = tmp_path / "state.txt"
    process = spawn(sleep, path, log=tmp_path / "log.txt")
    assert wait_for_text(path) == str(process.pid)
    stop([process])
    assert path.read_text() == "interrupted"
    assert process.exitcode not in (None, 0)


PARENT = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/../support"]
import test_workers as tests
if __name__ == "__main__":
    tests.spawn(tests.sleep, {path!r})
    tests.wait_for_text(tests.Path({path!r}))
    tests.fail("kill")
"""


@pytest.mark.slow
def test_process_does_not_outlive_its_killed_parent(tmp_path):
    script, path = tmp_path / "parent.py", tmp_path / "state.txt"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), path=str(path)))
    assert python(script).returncode == -signal.SIGKILL
    pid = int(path.read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=20)
