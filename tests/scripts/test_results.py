"""The command `results`: figures of several models in one file."""

import hashlib
import json

import pytest
from fake_report import write_reconstruction, write_run, write_sampling
from helpers import ROOT, run_command

COMMAND = ROOT / "scripts" / "results.py"
MODEL_HASH = hashlib.sha256(b"model").hexdigest()


@pytest.fixture
def models(tmp_path):
    """Folders of a model with a prior and samples, and of one without."""
    full, bare = tmp_path / "full", tmp_path / "bare"
    for folder, seconds in ((full, 600), (bare, 90)):
        metrics = {"epochs": 2, "epoch": 2, "seconds": seconds}
        write_run(folder / "vqvae", metrics=metrics, processor="A", cores=2, precision="float32")
        write_reconstruction(folder / "reconstruction", model_hash=MODEL_HASH, split="test")
    split = {"nats_per_code": 3.25, "bits_per_slice": 100.0, "bits_per_pixel_prior": 0.041}
    metrics = {"epochs": 2, "epoch": 2, "seconds": 1200, "splits": {"test": split}}
    prior = write_run(full / "prior", "pixelcnn", metrics=metrics)
    config = json.loads((prior / "config.json").read_text()) | {"vqvae_hash": MODEL_HASH}
    (prior / "config.json").write_text(json.dumps(config))
    write_sampling(full / "samples", prior_hash=MODEL_HASH)
    return full, bare


def test_rows_are_the_models_and_their_baselines(models, tmp_path, capsys):
    assert run_command(COMMAND, "--folders", *models, "--out", tmp_path / "results.json") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"{tmp_path / 'results.json'}: 5 rows"
    assert printed[1].split()[0] == "full"
    assert {"0.0790", "0.0410", "0.0200", "0.0086"} <= set(printed[1].split())
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    names = ["full", "bare", "mean training image", "black image", "AVIF"]
    assert [row["name"] for row in rows] == names
    full, bare, *_, avif = rows
    assert (full["minutes"], full["prior_minutes"]) == (10.0, 20.0)
    assert full["machine"] == {"processor": "A", "cores": 2, "precision": "float32"}
    assert full["ssim_foreground_low"] == 0.88
    assert (full["nats_per_code"], full["bits_per_pixel_prior"]) == (3.25, 0.041)
    assert (full["frechet_distance"], full["frechet_distance_real"]) == (0.02, 0.0086)
    assert (full["density"], full["coverage"]) == (0.9, 0.8)
    assert not {"prior_minutes", "frechet_distance"} & set(bare)
    assert avif["bits_per_pixel"] == 0.08


def test_half_trained_model_has_no_minutes(models, tmp_path):
    (models[1] / "vqvae" / "metrics.json").unlink()
    assert run_command(COMMAND, "--folders", models[1], "--out", tmp_path / "results.json") == 0
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["minutes"] is None


def test_no_folder_is_refused(tmp_path, capsys):
    assert run_command(COMMAND, "--folders", "--out", tmp_path / "results.json") == 2
    assert "`folders` must name at least one folder" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["reconstruction", "samples"])
def test_folder_of_another_model_is_refused(models, tmp_path, capsys, part):
    path = models[0] / part / "metrics.json"
    path.write_text(path.read_text().replace(MODEL_HASH, "0" * 64))
    assert run_command(COMMAND, "--folders", *models, "--out", tmp_path / "results.json") == 2
    assert f"{models[0] / part} was not made with the present model" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_folder_of_another_layout_is_refused(models, tmp_path, capsys):
    """The folder of reconstruct.py itself, instead of the one that it is in."""
    folder = models[1] / "reconstruction"
    assert run_command(COMMAND, "--folders", folder, "--out", tmp_path / "results.json") == 2
    error = capsys.readouterr().err
    assert "must hold vqvae/" in error
    assert f"Received: {folder}" in error


def test_folder_without_a_reconstruction_is_refused(models, tmp_path, capsys):
    (models[1] / "reconstruction" / "metrics.json").unlink()
    assert run_command(COMMAND, "--folders", *models, "--out", tmp_path / "results.json") == 2
    assert str(models[1] / "reconstruction") in capsys.readouterr().err
