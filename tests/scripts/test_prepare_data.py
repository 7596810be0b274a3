import re
import signal
import time

import pytest
from helpers import ROOT, captured_command, error_line, python, save_image, start
from volume_helpers import head, save_volume

from brainslices.data.archive import SliceArchive

COMMAND = ROOT / "scripts" / "prepare_data.py"
SMALL = ["--source", "phantom", "--subjects", "3", "--slices", "2", "--size", "32", "32"]
pytestmark = pytest.mark.slow


def test_help_lists_every_flag():
    status, out, _ = captured_command(COMMAND, "--help")
    assert status == 0
    for flag in ("--source", "--table", "--positions-mm", "--fractions", "--overwrite"):
        assert flag in out


def test_phantoms_are_archived_summarized_and_replaced_only_with_overwrite(tmp_path):
    arguments = [*SMALL, "--out", tmp_path / "archive"]
    status, out, err = captured_command(COMMAND, *arguments)
    assert (status, err.count("error")) == (0, 0)
    archive = SliceArchive.open(tmp_path / "archive")
    assert len(archive.index) == 6
    assert "train          1 subjects        2 slices" in out
    assert f"cropped to {archive.crop.rows} x {archive.crop.cols}" in out
    assert "already holds" in error_line(COMMAND, *arguments)
    assert captured_command(COMMAND, *arguments, "--overwrite")[0] == 0


def test_lists_and_warnings_escape_control_characters(tmp_path):
    for name in ("a_mask.png\r\x1b[2J", "a\n\udcff_mask.png"):
        save_image(tmp_path / "source" / f"{name}.png")
    for name in ("a", "b", "c"):
        save_volume(tmp_path / "source" / f"{name}\x1b[2J\n.nii", head())
    done = python(COMMAND, "--source", tmp_path / "source", "--out", tmp_path / "archive")
    out, err = done.stdout, done.stderr
    assert done.returncode == 2
    assert "must not have control characters" in err
    assert "read      3 volumes, e.g. a\\x1b[2J\\n.nii\n" in out
    assert "left out  2 masks or label maps, by their names, e.g. a\\n\\udcff_mask.png.png\n" in out
    assert re.match(r"warning: 3 files are treated as separate subjects.*a\\x1b\[2J\\n.nii", err)
    assert all(char.isprintable() or char == "\n" for char in out + err)


def test_names_that_the_encoding_of_the_terminal_lacks_are_escaped(tmp_path):
    for name in ("ä", "b", "c"):
        (tmp_path / "source").mkdir(exist_ok=True)
        save_volume(tmp_path / "source" / f"{name}.nii", head())
    arguments = ("--source", tmp_path / "source", "--out", tmp_path / "ä")
    done = python(COMMAND, *arguments, PYTHONIOENCODING="ascii")
    assert (done.returncode, f"{tmp_path}/\\xe4: " in done.stdout) == (0, True)


def test_bad_input_is_one_line_and_status_2(tmp_path):
    message = error_line(COMMAND, "--source", tmp_path / "absent", "--out", tmp_path / "archive")
    assert message.startswith(f"error: {tmp_path}/absent")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--out", "new", "--fractions", "1", "1", "1"], "fractions"),
        (["--out", "new", "--seeds", "1"], "--seeds"),
        ([], "--out"),
    ],
)
def test_wrong_flags_are_status_2_without_traceback(arguments, flag):
    status, _, err = captured_command(COMMAND, *SMALL, *arguments)
    assert status == 2
    assert flag in err
    assert "Traceback" not in err


def test_interrupt_is_status_130_and_leaves_nothing(tmp_path):
    process = start(
        COMMAND, "--source", "phantom", "--subjects", "5000", "--out", tmp_path / "archive"
    )
    deadline = time.monotonic() + 30
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(tmp_path.glob(".archive*"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir())
