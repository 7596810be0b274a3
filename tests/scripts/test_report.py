"""The command `report`, and `--report` on the commands that make what it shows."""

import re

import pytest
from fake_report import write_run, write_search
from helpers import (
    ROOT,
    captured_command,
    error_line,
    flags,
    tiny_config,
    tiny_prior_config,
    tiny_prior_training,
)
from helpers import tiny_training as tiny_vqvae_training

COMMAND = ROOT / "scripts" / "report.py"


def command(name, *arguments):
    """Run a command in this process; return the lines that it prints."""
    status, out, err = captured_command(ROOT / "scripts" / f"{name}.py", *arguments)
    assert status == 0, err
    return out.splitlines()


def sections(path):
    return re.findall(r'<section id="(\w+)">', path.read_text())


def test_search_alone_is_reported(tmp_path):
    out = tmp_path / "report.html"
    search = write_search(tmp_path / "search")
    (line,) = command("report", "--search", search, "--out", out)
    assert line.startswith(f"{out}: ")
    assert sections(out) == ["trials"]
    rows = re.findall(r'<tr id="trial-(\d)" tabindex="-1"( class="front")?>', out.read_text())
    assert [name for name, on_front in rows if on_front] == ["0", "1", "3"]


def test_folder_that_is_no_run_is_refused_with_status_2(tmp_path):
    run = write_run(tmp_path / "run")
    for words in (["--runs", run, tmp_path], ["--search", run], ["--runs", run, "--samples", run]):
        assert str(words[-1]) in error_line(COMMAND, *words, "--out", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.long
def test_commands_write_reports_of_what_they_made(tmp_path):
    data, vqvae, prior = (tmp_path / name for name in ("data", "vqvae", "prior"))
    size = ("--subjects", 10, "--slices", 4, "--size", 64, 64)
    command("prepare_data", "--source", "phantom", *size, "--out", data)
    config = flags(tiny_config(encoder_blocks=0, decoder_blocks=0))
    config += flags(tiny_vqvae_training())
    printed = command("train_vqvae", "--data", data, "--run", vqvae, *config, "--report")
    assert printed[-1] == str(vqvae / "report.html")
    html = (vqvae / "report.html").read_text()
    assert "trained, 2 epochs" in html
    assert f"--data {data} --run {vqvae}" in html
    assert re.search(r"brainslices \d", html)

    scored = tmp_path / "scored"
    words = ("--run", vqvae, "--data", data, "--out", scored)
    command("reconstruct", *words, "--report")
    assert sections(scored / "report.html") == ["verdict", "runs", "curves", "reconstruction"]
    assert html.count('class="compare"') == 0
    assert (scored / "report.html").read_text().count('class="compare"') >= 3

    config = flags(tiny_prior_config()) + flags(tiny_prior_training())
    words = ("--vqvae", vqvae, "--run", prior, *config, "--report")
    assert command("train_pixelcnn", *words)[-1] == str(prior / "report.html")

    samples = tmp_path / "samples"
    words = ("--run", prior, "--count", 4, "--evaluate", "--report", "--out", samples)
    command("sample", *words)
    html = (samples / "report.html").read_text()
    assert html.count('class="nearest"') == 4
    assert "SSIM to the nearest training slice" in html
    command("sample", *words)  # replaces the earlier samples and their report

    out = tmp_path / "all.html"
    words = ("--runs", vqvae, prior, "--reconstruction", scored, "--samples", samples)
    command("report", *words, "--out", out)
    assert sections(out) == ["verdict", "runs", "curves", "reconstruction", "samples"]
    assert "not judged" not in out.read_text()
