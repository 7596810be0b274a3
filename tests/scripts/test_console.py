"""The command `brainslices` and its subcommands."""

import json
import re
import runpy
import sys

import pytest
from helpers import ROOT, python

CONSOLE = ROOT / "scripts" / "__main__.py"
COMMANDS = sorted(
    path.stem.replace("_", "-")
    for path in (ROOT / "scripts").glob("*.py")
    if not path.stem.startswith("_")
)
HELP = """
import contextlib, io, json, runpy, sys
console, *commands = sys.argv[1:]
heavy = {"tensorflow", "keras", "jax", "matplotlib", "scipy", "skimage", "nibabel"}
helps = {}
for command in commands:
    sys.argv = ["brainslices", command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(console, run_name="__main__")
        except SystemExit as stop:
            helps[command] = (stop.code, printed.getvalue(), sorted(heavy & set(sys.modules)))
print(json.dumps(helps))
"""


@pytest.fixture
def console(monkeypatch, capsys):
    """Function that runs the command in this process: exit status, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["brainslices", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(CONSOLE), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_help_lists_every_script(console):
    status, out, _ = console("--help")
    assert status == 0
    assert re.findall(r"^  ([a-z-]+) ", out, re.MULTILINE) == COMMANDS


def test_no_command_is_wrong_use(console):
    assert console()[0] == 2


def test_unknown_command_is_refused_by_name(console):
    status, out, err = console("smaple")
    assert (status, out) == (2, "")
    assert "smaple" in err
    assert "sample" in err


@pytest.fixture(scope="module")
def helps():
    """Status, output and heavy modules of every subcommand's --help, all in one new process."""
    ran = python("-c", HELP, CONSOLE, *COMMANDS)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_subcommand_help_names_the_subcommand_and_imports_no_backend(helps, command):
    status, out, heavy = helps[command]
    assert (status, heavy) == (0, [])
    assert f"brainslices {command}" in out


def test_subcommand_accepts_underscores_and_runs(console, tmp_path):
    options = ["--source", "phantom", "--subjects", 3, "--slices", 2, "--size", 32, 32]
    status, _, err = console("prepare_data", *options, "--out", tmp_path / "archive")
    assert status == 0, err
    assert (tmp_path / "archive" / "archive.json").is_file()


def test_wrong_input_of_a_subcommand_exits_with_2(tmp_path):
    ran = python(CONSOLE, "prepare-data", "--source", tmp_path / "no", "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert str(tmp_path / "no") in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_knows_every_subcommand(console, shell):
    status, out, err = console("--tyro-print-completion", shell)
    assert status == 0, err
    for command in COMMANDS:
        assert command in out
    assert "--temperature" in out
