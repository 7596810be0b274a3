"""Rates under a prior by reconstruct.py, and their comparison with codecs by rate_distortion.py."""

import json

import numpy as np
import pytest
from helpers import ROOT, captured_command, run_command
from PIL import Image

from brainslices.csv_files import read_rows
from brainslices.data.slices import open_slices
from brainslices.evaluation.codecs import CODECS, codec_rate
from brainslices.evaluation.image_metrics import score_slices
from brainslices.report.rate_distortion import ENDS, RATE_KEYS
from brainslices.runs.run import Run

RECONSTRUCT = ROOT / "scripts" / "reconstruct.py"
COMPARE = ROOT / "scripts" / "rate_distortion.py"


@pytest.fixture(scope="module")
def reconstructions(phantom_archive, trained_vqvae, trained_prior, tmp_path_factory):
    """Folders of the same slices: without a prior, with one, and with fewer bits under it."""
    folder = tmp_path_factory.mktemp("reconstructions")
    options = {
        "plain": [],
        "nearest": ["--prior", trained_prior],
        "cheap": ["--prior", trained_prior, "--sweeps", 1, "--rate-weight", 5.0],
    }
    for name, flags in options.items():
        arguments = ["--run", trained_vqvae, "--data", phantom_archive.path, *flags]
        assert run_command(RECONSTRUCT, *arguments, "--out", folder / name) == 0
    return folder


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_rate_is_that_of_the_prior_and_the_scores_are_unchanged(reconstructions, trained_prior):
    plain, nearest = read(reconstructions / "plain"), read(reconstructions / "nearest")
    expected = Run(trained_prior).read_metrics()["splits"]["test"]
    for name in ("nats_per_code", "bits_per_pixel_prior"):
        assert nearest[name] == pytest.approx(expected[name], rel=1e-4)
        assert nearest[f"{name}_low"] <= nearest[name] <= nearest[f"{name}_high"]
    assert nearest["ssim_foreground"] == pytest.approx(plain["ssim_foreground"], abs=1e-5)
    assert "bits_per_pixel_prior" not in plain


@pytest.mark.slow
def test_rate_weight_saves_bits(reconstructions):
    nearest, cheap = read(reconstructions / "nearest"), read(reconstructions / "cheap")
    assert cheap["bits_per_pixel_prior"] < nearest["bits_per_pixel_prior"]
    assert (cheap["sweeps"], cheap["rate_weight"]) == (1, 5.0)
    assert nearest["prior_hash"] == cheap["prior_hash"]


@pytest.mark.slow
def test_sweeps_raise_the_scores(reconstructions, trained_vqvae, phantom_archive, tmp_path):
    arguments = ["--run", trained_vqvae, "--data", phantom_archive.path, "--sweeps", 1]
    assert run_command(RECONSTRUCT, *arguments, "--out", tmp_path / "out") == 0
    swept, plain = read(tmp_path / "out"), read(reconstructions / "plain")
    assert swept["ssim_foreground"] > plain["ssim_foreground"]
    assert swept["bits_per_pixel_raw"] == plain["bits_per_pixel_raw"]


def test_rate_weight_without_a_prior_is_refused(trained_vqvae, phantom_archive, tmp_path, capsys):
    arguments = ["--run", trained_vqvae, "--data", phantom_archive.path, "--rate-weight", 1]
    assert run_command(RECONSTRUCT, *arguments, "--out", tmp_path / "out") == 2
    assert "`rate_weight` must be 0 without both sweeps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def compared(reconstructions, phantom_archive, tmp_path_factory):
    """Folder and output of a comparison of models and of made-up points.

    `good` has half the bits of AVIF at its score, `bad` a score below any of AVIF's.
    """
    slices = open_slices(phantom_archive.path, "test")
    rate, decoded = codec_rate(slices, "avif", 60)
    score = float(np.nanmean(score_slices(slices, decoded)["ssim_foreground"]))
    metrics, made_up = read(reconstructions / "nearest"), tmp_path_factory.mktemp("points")
    for name, (own_rate, own_score) in {"good": (rate / 2, score), "bad": (rate, 0.01)}.items():
        scores = dict.fromkeys(("ssim_foreground", *(f"ssim_foreground{e}" for e in ENDS)))
        scores = dict.fromkeys(scores, own_score) | dict.fromkeys(RATE_KEYS.values(), own_rate)
        (made_up / name).mkdir()
        (made_up / name / "metrics.json").write_text(json.dumps(metrics | scores))
    folders = [*(reconstructions / name for name in ("nearest", "cheap")), *made_up.iterdir()]
    out = tmp_path_factory.mktemp("compared") / "out"
    arguments = ["--reconstructions", *folders, "--data", phantom_archive.path, "--out", out]
    status, printed, err = captured_command(COMPARE, *arguments)
    assert status == 0, err
    return out, printed


@pytest.mark.slow
def test_comparison_has_the_points_of_models_and_codecs(compared, reconstructions):
    out, printed = compared
    metrics = json.loads((out / "metrics.json").read_text())
    models = [row for row in metrics["points"] if not row["codec"]]
    rates = [row["bits_per_pixel"] for row in models]
    assert rates == sorted(rates)
    by_name = {row["name"]: row for row in models}
    assert set(by_name) == {"cheap", "nearest", "good", "bad"}
    for name in ("cheap", "nearest"):
        expected = read(reconstructions / name)
        assert by_name[name]["bits_per_pixel"] == expected["bits_per_pixel_prior"]
        assert by_name[name]["ssim_foreground_low"] == expected["ssim_foreground_low"]
        assert name in printed
    assert set(metrics["bd_rate"]) == set(CODECS)
    assert len(read_rows(out / "rate_distortion.csv")) == len(metrics["points"])
    with Image.open(out / "rate_distortion.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.slow
def test_difference_has_the_sign_of_the_rates(compared, reconstructions):
    points = json.loads((compared[0] / "metrics.json").read_text())["points"]
    by_name = {row["name"]: row for row in points}
    assert by_name["good"]["rate_difference_avif"] == pytest.approx(-0.5, abs=0.05)
    assert by_name["bad"]["rate_difference_avif"] is None
    assert by_name["good"]["prior_hash"] == read(reconstructions / "nearest")["prior_hash"]


def test_comparison_refuses_other_slices_and_rates_without_a_prior(
    reconstructions, phantom_archive, tmp_path, capsys
):
    other = tmp_path / "other"
    other.mkdir()
    metrics = read(reconstructions / "nearest") | {"archive_hash": "0" * 64}
    (other / "metrics.json").write_text(json.dumps(metrics))
    for folders, message in (
        ([other], "must be of split test"),
        ([reconstructions / "plain"], "must have rates under a prior"),
        ([reconstructions / "nearest"] * 2, "'nearest' for both"),
    ):
        arguments = ["--reconstructions", *folders, "--data", phantom_archive.path]
        assert run_command(COMPARE, *arguments, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
