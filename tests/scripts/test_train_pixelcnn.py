import zipfile

import pytest
from helpers import (
    ROOT,
    captured_command,
    error_line,
    flags,
    run_command,
    tiny_prior_config,
    tiny_prior_training,
)
from training_runs import contents, interrupt_after

from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run
from pixelcnn.config import PRESETS
from vqvae.encode import load_or_encode

COMMAND = ROOT / "scripts" / "train_pixelcnn.py"
CONFIG = tiny_prior_config(first_kernel_size=3)

pytestmark = pytest.mark.usefixtures("fresh_keras")


def training_flags(config=CONFIG, training=None):
    training = training or tiny_prior_training(epochs=1)
    return [*flags(config), *flags(training)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_selected(preset, tmp_path, capsys):
    arguments = ["--vqvae", tmp_path / "missing", "--run", tmp_path / "run", "--preset", preset]
    assert run_command(COMMAND, *arguments) == 2
    assert "missing is not a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_command_encodes_trains_and_resumes(linked, tmp_path, monkeypatch, capsys):
    vqvae = linked[1]
    vqvae.code_grids_path.unlink()
    run = Run(tmp_path / "run")
    arguments = ["--vqvae", vqvae.path, "--run", run.path, *training_flags()]
    with monkeypatch.context() as patch:
        interrupt_after(patch, [(0, 3)])
        assert run_command(COMMAND, *arguments) == 130
    assert f"{run.path} after epoch 0, step 3" in capsys.readouterr().err
    assert CodeGrids.load(vqvae.code_grids_path).variants.shape[:2] == (1, 40)
    assert run_command(COMMAND, *arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2].startswith("best epoch 1 of 1")
    assert out.splitlines()[-1] == (
        f"{run.path}: model.keras, history.csv, metrics.json, figures/training.png"
    )
    assert "error" not in err
    assert read_json(run.config_path)["vqvae_run"] == str(vqvae.path)
    # The stored code grids name the new folder of a run that was moved.
    moved = vqvae.path.rename(tmp_path / "moved")
    assert load_or_encode(moved, variants=1).vqvae_run == str(moved)
    moved.rename(vqvae.path)
    assert run_command(COMMAND, *arguments, "--layers", "3") == 2
    assert "layers=2" in capsys.readouterr().err
    # Codes of another model: refused before slices are encoded for it.
    vqvae.code_grids_path.unlink()
    with zipfile.ZipFile(vqvae.model_path, "a") as file:
        file.writestr("comment.txt", "another model")
    assert run_command(COMMAND, *arguments) == 2
    assert "vqvae_hash=" in capsys.readouterr().err
    assert not vqvae.code_grids_path.exists()


def test_runs_without_a_usable_vqvae_are_errors(linked, tmp_path):
    prior, vqvae = linked
    out = ["--run", tmp_path / "run", *training_flags()]
    message = error_line(COMMAND, "--vqvae", tmp_path / "absent", *out)
    assert str(tmp_path / "absent") in message
    assert "'pixelcnn'" in error_line(COMMAND, "--vqvae", prior.path, *out)
    vqvae.model_path.unlink()
    vqvae.history_path.unlink()
    message = error_line(COMMAND, "--vqvae", vqvae.path, *out)
    assert f"{vqvae.path} has no model.keras" in message
    assert not (tmp_path / "run").exists()


def test_missing_archive_is_an_error(linked, tmp_path):
    vqvae = linked[1]
    vqvae.code_grids_path.unlink()
    environment = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**environment, "archive": str(tmp_path / "gone")})
    arguments = ["--vqvae", vqvae.path, "--run", tmp_path / "run", *training_flags()]
    message = error_line(COMMAND, *arguments)
    assert str(tmp_path / "gone") in message
    assert "--data" in message
    assert not (tmp_path / "run").exists()


def test_folder_with_unexpected_files_is_an_error(linked, tmp_path):
    prior, vqvae = linked
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    arguments = ["--vqvae", vqvae.path, *training_flags()]
    message = error_line(COMMAND, *arguments, "--run", tmp_path / "thesis")
    assert "chapter.txt" in message
    before = contents(vqvae.path)
    message = error_line(COMMAND, *arguments, "--run", vqvae.path)
    assert "'vqvae'" in message
    assert contents(vqvae.path) == before


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        (["--channels", "0"], "channels=0"),
        (["--kernel-size", "4"], "kernel_size=4"),
        (["--dropout", "1"], "dropout=1"),
        (["--variants", "-1"], "variants=-1"),
        (["--attention-heads", "3"], "attention_heads=3"),
        (["--epochs", "0"], "epochs=0"),
    ],
)
def test_invalid_hyperparameters_are_errors(trained_vqvae, tmp_path, changes, received):
    arguments = ["--vqvae", trained_vqvae, "--run", tmp_path / "run", *training_flags(), *changes]
    status, _, err = captured_command(COMMAND, *arguments)
    assert status == 2
    assert received in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
