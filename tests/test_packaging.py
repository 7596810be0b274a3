"""The wheel: what it holds, and that its command works in a bare virtual environment."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.slow


def run(*words, **options):
    """Run a program outside of the repository, without its paths; return its CompletedProcess."""
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=300, env={}, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the sources, so that the clone gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source]
    built = subprocess.run([*map(str, build)], capture_output=True, text=True, timeout=300)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("needs a package registry to fetch setuptools from")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """Install the wheel into a new virtual environment; dependencies come from this one."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    made = run(sys.executable, "-m", "venv", folder)
    assert made.returncode == 0, made.stderr
    installed = run(folder / "bin" / "python", "-m", "pip", "install", "--no-deps", wheel)
    assert installed.returncode == 0, installed.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Paths in a .pth file are searched, but .pth files in them, such as an editable install's,
    # are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_wheel_holds_packages_and_commands_but_no_benchmarks_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"brainslices", "brainslices_commands", "pixelcnn", "tuning", "vqvae"}
    assert "brainslices/data/archive.py" in names
    assert "brainslices_commands/sample.py" in names
    for package in ("brainslices", "pixelcnn", "tuning", "vqvae"):
        assert f"{package}/py.typed" in names
    assert not [name for name in names if "benchmarks/" in name or "test_" in name]


def test_console_command_makes_an_archive_in_a_bare_environment(bare, tmp_path):
    code = "import brainslices; print(brainslices.__file__)"
    where = run(bare / "python", "-c", code, cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(bare.parent), where.stderr
    listed = run(bare / "brainslices", "--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "train-vqvae" in listed.stdout
    options = ["--source", "phantom", "--subjects", "3", "--slices", "2", "--size", "32", "32"]
    made = run(bare / "brainslices", "prepare-data", *options, "--out", tmp_path / "archive")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "archive" / "archive.json").is_file()


def test_benchmarks_of_a_wheel_say_where_they_are(bare, tmp_path):
    ran = run(bare / "brainslices", "benchmark", "--data", tmp_path, "--out", tmp_path / "out.json")
    assert ran.returncode == 2
    assert "scripts/benchmark.py" in ran.stderr
    assert "Traceback" not in ran.stderr
