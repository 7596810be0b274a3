"""The command `brainslices` and its subcommands."""

import re

import pytest
from helpers import ROOT, python

CONSOLE = ROOT / "scripts" / "__main__.py"
COMMANDS = sorted(
    path.stem.replace("_", "-")
    for path in (ROOT / "scripts").glob("*.py")
    if not path.stem.startswith("_")
)


def test_help_lists_every_script():
    ran = python(CONSOLE, "--help")
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"^  ([a-z-]+) ", ran.stdout, re.MULTILINE) == COMMANDS


def test_no_command_is_wrong_use():
    assert python(CONSOLE).returncode == 2


def test_unknown_command_is_refused_by_name():
    ran = python(CONSOLE, "smaple")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "smaple" in ran.stderr
    assert "sample" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_subcommand_help_names_the_subcommand_and_imports_no_backend(command):
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'matplotlib', 'scipy', 'skimage', 'nibabel'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['brainslices', {command!r}, '--help']\n"
        f"runpy.run_path({str(CONSOLE)!r}, run_name='__main__')\n"
    )
    ran = python("-c", code)
    assert ran.returncode == 0, ran.stderr
    assert f"brainslices {command}" in ran.stdout
    assert "HEAVY []" in ran.stdout


def test_subcommand_accepts_underscores_and_runs(tmp_path):
    options = ["--source", "phantom", "--subjects", 3, "--slices", 2, "--size", 32, 32]
    ran = python(CONSOLE, "prepare_data", *options, "--out", tmp_path / "archive")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "archive" / "archive.json").is_file()


def test_wrong_input_of_a_subcommand_exits_with_2(tmp_path):
    ran = python(CONSOLE, "prepare-data", "--source", tmp_path / "no", "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert str(tmp_path / "no") in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_knows_every_subcommand(shell):
    ran = python(CONSOLE, "--tyro-print-completion", shell)
    assert ran.returncode == 0, ran.stderr
    for command in COMMANDS:
        assert command in ran.stdout
    assert "--temperature" in ran.stdout
