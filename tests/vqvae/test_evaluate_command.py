"""The command that reconstructs slices."""

import pytest
from helpers import ROOT, captured_command, error_line
from reconstruction_helpers import FILES, WRITTEN

from brainslices.evaluation.reports import reconstruction_summary

COMMAND = ROOT / "scripts" / "reconstruct.py"


@pytest.mark.slow
def test_command_writes_and_prints_the_table(run, phantom_archive, reconstruction, tmp_path):
    arguments = ["--run", run.path, "--data", phantom_archive.path, "--split", "test"]
    words = (*arguments, "--out", tmp_path / "out", "--pictures")
    status, out, err = captured_command(COMMAND, *words)
    assert status == 0, err
    assert "Traceback" not in err
    summary = reconstruction_summary(reconstruction[1])
    assert out == f"{summary}\n{tmp_path / 'out'}: {', '.join(FILES)}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN | {"pictures"}


def test_command_reports_an_error_in_one_line_with_status_2(phantom_archive, tmp_path):
    arguments = ["--run", tmp_path, "--data", phantom_archive.path, "--out", tmp_path / "out"]
    assert error_line(COMMAND, *arguments).startswith(f"error: {tmp_path} is not a run folder")
    assert not any(tmp_path.iterdir())


def test_help_lists_every_flag():
    status, out, _ = captured_command(COMMAND, "--help")
    assert status == 0
    for flag in ("--run", "--data", "--out", "--split", "--batch-size", "--pictures", "--codecs"):
        assert flag in out
