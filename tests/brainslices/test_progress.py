"""Progress of long work: a bar on a terminal, plain lines when piped."""

import io
import os
import pty
import select
import termios

from helpers import start

from brainslices import progress

PROGRAM = """
import time
from brainslices import progress
progress.PLAIN_INTERVAL_S = 0.1
for _ in progress.track(range(8), 8, "encoding", "slices"):
    time.sleep(0.08)
"""
WARNING_PROGRAM = """
import logging
from brainslices import cli, progress

def main():
    for _ in progress.track(range(8), 8, "encoding", "slices"):
        logging.getLogger("brainslices").warning("late")

cli.run(main)
"""


def test_piped_progress_is_lines_with_rate_and_eta_without_control_characters():
    process = start("-c", PROGRAM)
    out, err = process.communicate(timeout=60)
    lines = err.splitlines()
    assert process.returncode == 0
    assert out == ""
    assert len(lines) >= 3
    for line in lines:
        assert line.startswith("encoding: ")
        assert "slices/s" in line
        assert "\r" not in line
        assert "\x1b" not in line
    assert "<" in lines[0]  # time left


def test_short_piped_work_prints_nothing(capsys):
    assert list(progress.track(range(3), 3, "encoding", "slices")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def drawn_on_terminal(program):
    """What a program writes to a terminal as its stderr."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    process = start("-c", program, stderr=follower)
    out, _ = process.communicate(timeout=60)
    os.close(follower)
    text = b""
    while select.select([leader], [], [], 1.0)[0]:
        try:
            text += os.read(leader, 65536)
        except OSError:  # Linux reports the closed end of a terminal so
            break
    os.close(leader)
    drawn = text.decode()
    assert process.returncode == 0, drawn
    return drawn


def test_terminal_progress_is_one_line_redrawn():
    drawn = drawn_on_terminal(PROGRAM)
    assert "100%" in drawn
    assert drawn.count("\r") > 3
    assert drawn.count("\n") == 1


def test_warning_is_a_line_of_its_own_above_the_bar():
    drawn = drawn_on_terminal(WARNING_PROGRAM)
    before, line, after = drawn.partition("warning: late\r\n")
    assert line
    assert before.endswith("\r")  # the bar was erased
    assert "100%" in after


def test_silent_bar_prints_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.bar(total=2, description="epoch", unit="slices", silent=True) as shown:
        shown.update(2)
    assert stream.getvalue() == ""
