"""What the documentation states is true: commands parse, code runs, names and links exist."""

import contextlib
import doctest
import importlib
import io
import json
import re
import shlex
from dataclasses import asdict

import pytest
from helpers import ROOT, python, script_main

from brainslices import cli

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))}
PACKAGES = ("brainslices", "vqvae", "pixelcnn", "tuning")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:python scripts/(\w+)\.py|\bbrainslices ([a-z-]+))([^'\n]*)")
# Flags in running text that belong to other programs, or to every command.
OTHER_FLAGS = {"--constraint", "--editable", "--logdir", "--tyro-print-completion"}


def page_name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Fenced code blocks of a page, with continued lines joined."""
    code = [text for kind, text in FENCE.findall(page.read_text()) if kind == language]
    return [text.replace("\\\n", " ") for text in code]


def commands(page):
    """Name and arguments of every command in the shell blocks of a page."""
    for block in blocks(page, "bash"):
        for script, subcommand, arguments in COMMAND.findall(block):
            name = script or subcommand.replace("-", "_")
            if name in SCRIPTS:
                yield name, shlex.split(re.split(r" [>|&]", arguments)[0], comments=True)


COMMANDS = sorted({(name, *arguments) for page in PAGES for name, arguments in commands(page)})


class Parsed(Exception):
    """The command line was accepted."""


@pytest.fixture
def parse_only(monkeypatch, tmp_path):
    """Run a command up to the end of its argument parsing."""
    parse = cli.parse

    def parse_and_stop(*arguments, **options):
        parse(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(cli, "parse", parse_and_stop)

    def run(name, arguments):
        main = script_main(SCRIPTS[name])
        if "--config" in arguments:
            arguments[arguments.index("--config") + 1] = str(written_config(tmp_path))
        with pytest.raises(Parsed):
            main(arguments)

    return run


def written_config(folder):
    from vqvae.config import PRESETS

    preset, path = PRESETS["default"], folder / "config.json"
    path.write_text(
        json.dumps({"model": asdict(preset.model), "training": asdict(preset.training)})
    )
    return path


def test_documentation_has_commands():
    assert len(COMMANDS) > 15
    assert {command[0] for command in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_documented_command_parses(command, parse_only):
    name, *arguments = command
    parse_only(name, arguments)


@pytest.fixture(scope="module")
def known_flags():
    """Flags of all commands, as `--help` lists them."""
    flags = set(OTHER_FLAGS)
    for path in SCRIPTS.values():
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
            script_main(path)(["--help"])
        flags |= set(re.findall(r"--[a-z][a-z0-9-]*", output.getvalue()))
    return flags


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_flags_in_the_text_exist(page, known_flags):
    text = FENCE.sub("", page.read_text())
    spans = " ".join(re.findall(r"`([^`]+)`", text))
    flags = set(re.findall(r"(?<!\S)(--[a-z][a-z0-9-]*)", spans))
    assert flags <= known_flags


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, page_name(page), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "tutorial.md"], ids=page_name)
def test_python_blocks_run(page, phantom_archive, trained_vqvae, trained_prior, tmp_path):
    if "onnxruntime" in page.read_text():
        pytest.importorskip("onnxruntime")
        script_main(SCRIPTS["export"])(["--run", str(trained_vqvae), "--out", str(tmp_path / "a")])
    places = {
        "outputs/vqvae_onnx/encoder.onnx": tmp_path / "a" / "encoder.onnx",
        "data/oasis": phantom_archive.path,
        "runs/default": trained_vqvae,
        "runs/prior": trained_prior,
    }
    for block in blocks(page, "python"):
        for place, path in places.items():
            block = block.replace(f'"{place}"', repr(str(path)))
        # Fewer slices: each number of them is compiled once more.
        exec(compile(block.replace("sample(16", "sample(2"), page_name(page), "exec"), {})


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_point_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", page.read_text())):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_names_in_the_equation_table_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"`([\w/]+\.py)`: (`[^|\n]+`)", text)
    assert len(rows) > 15
    for file, names in rows:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"(class|def) {name.split('.')[-1]}\b", source), f"{file}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_in_the_text_exist(page):
    text = FENCE.sub("", page.read_text())
    places = "|".join((*PACKAGES, "scripts", "tests", "docs"))
    for file in re.findall(rf"`((?:{places})/[\w/]+(?:\.py|\.sh|\.txt|\.md|/))`", text):
        assert (ROOT / file).exists(), file


def modules_with_examples():
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    files = [file for file in files if ">>> " in file.read_text()]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


@pytest.mark.parametrize("module", modules_with_examples())
def test_docstring_examples_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert not failed


@pytest.mark.slow
@pytest.mark.long
def test_site_is_built_with_executed_notebooks(tmp_path):
    site = tmp_path / "html"
    built = python("-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", site, timeout=1800)
    assert built.returncode == 0, built.stderr
    pages = [site / "notebooks" / f"{page.stem}.html" for page in PAGES if is_notebook(page)]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text()
        images = re.findall(r'src="(\.\./_images/[^"]+\.png)"', text)
        assert len(images) >= 2
        for image in images:
            assert (page.parent / image).stat().st_size > 2000
        assert "Traceback" not in text


def is_notebook(page):
    return page.parent.name == "notebooks"
