"""Real processes, of functions in this very file."""

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


def answer(number):
    sys.stdout.write(f"asked for {number}\n")
    return {"square": number**2, "pid": os.getpid(), "word": os.environ.get("WORD")}


def refuse(words):
    raise InputError(words)


def break_down():
    raise ZeroDivisionError("too\nlong")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def wait(path):
    """Says its number, and when it is asked to stop."""
    Path(path).write_text(str(os.getpid()))
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        Path(path).write_text("asked to stop")
        raise


def wait_for(path, timeout=60):
    deadline = time.monotonic() + timeout
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_result_comes_from_another_process_with_its_own_surroundings(tmp_path):
    log = tmp_path / "logs" / "log.txt"
    found = call(answer, 7, log=log, environment={"WORD": "spoken"})
    assert (found["square"], found["word"]) == (49, "spoken")
    assert found["pid"] != os.getpid()
    assert "WORD" not in os.environ
    assert call(answer, 8, log=log)["word"] is None
    assert log.read_text() == "asked for 7\nasked for 8\n"


def test_failures_are_told_apart(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(InputError, match="no such slice"):
        call(refuse, "no such slice", log=log)
    with pytest.raises(CallFailed, match="^ZeroDivisionError: too long$") as failed:
        call(break_down, log=log)
    assert not failed.value.killed
    assert "Traceback" in log.read_text()
    with pytest.raises(CallFailed, match="killed by SIGKILL, as the system does when") as failed:
        call(be_killed)
    assert failed.value.killed


def test_stopped_process_hears_of_it(tmp_path):
    path = tmp_path / "said"
    process = spawn(wait, path, log=tmp_path / "log.txt")
    assert wait_for(path) == str(process.pid)
    stop([process])
    assert path.read_text() == "asked to stop"
    assert process.exitcode not in (None, 0)


PARENT = """
import sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/../support"]
import test_workers as tests
if __name__ == "__main__":
    tests.spawn(tests.wait, {path!r})
    tests.wait_for(tests.Path({path!r}))
    tests.be_killed()
"""


def test_process_does_not_outlive_the_one_that_started_it(tmp_path):
    script, path = tmp_path / "parent.py", tmp_path / "said"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), path=str(path)))
    assert python(script).returncode == -signal.SIGKILL
    pid = int(path.read_text())
    if psutil.pid_exists(pid):
        _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=20)
        assert not alive
