import pytest
from helpers import ROOT, flags, script_main, tiny_prior_config, tiny_prior_training
from training_runs import contents, interrupt_after

from brainslices import cli
from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run

CONFIG = tiny_prior_config(first_kernel_size=3)

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture(scope="module")
def command():
    """Runs the command in this process."""
    main = script_main(ROOT / "scripts" / "train_pixelcnn.py")
    return lambda *words: cli.run(lambda: main([str(word) for word in words]))


def words(config=CONFIG, training=None):
    training = training or tiny_prior_training(epochs=1)
    return [*flags(config), *flags(training)]


def test_command_encodes_trains_and_goes_on(linked, command, tmp_path, monkeypatch, capsys):
    vqvae = linked[1]
    vqvae.code_grids_path.unlink()
    run = Run(tmp_path / "run")
    asked = ["--vqvae", vqvae.path, "--run", run.path, *words()]
    with monkeypatch.context() as patch:
        interrupt_after(patch, [(0, 3)])
        assert command(*asked) == 130
    assert (
        f"stopped. Checkpoint saved in {run.path} after epoch 0, step 3" in capsys.readouterr().err
    )
    assert CodeGrids.load(vqvae.code_grids_path).variants.shape[:2] == (1, 40)
    assert command(*asked) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2].startswith("best epoch 1 of 1")
    assert out.splitlines()[-1] == (
        f"{run.path}: model.keras, history.csv, metrics.json, figures/training.png"
    )
    assert "error" not in err
    assert read_json(run.config_path)["vqvae_run"] == str(vqvae.path)
    # The codes that are kept know the run by its new place, if it was moved.
    moved = vqvae.path.rename(tmp_path / "moved")
    again = ["--vqvae", moved, "--run", tmp_path / "again", *words()]
    assert command(*again) == 0
    assert read_json(Run(tmp_path / "again").config_path)["vqvae_run"] == str(moved)
    capsys.readouterr()
    moved.rename(vqvae.path)
    assert command(*asked, "--layers", "3") == 2
    assert "layers=2 (received: 3)" in capsys.readouterr().err


def refused(command, capsys, *asked):
    """The one line that a refused command says."""
    capsys.readouterr()
    assert command(*asked) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_command_refuses_what_is_no_vqvae(linked, command, tmp_path, capsys):
    prior, vqvae = linked
    out = ["--run", tmp_path / "run", *words()]
    message = refused(command, capsys, "--vqvae", tmp_path / "absent", *out)
    assert f"{tmp_path / 'absent'} is not a run folder" in message
    assert "kind 'pixelcnn'; expected 'vqvae'" in refused(
        command, capsys, "--vqvae", prior.path, *out
    )
    vqvae.model_path.unlink()
    vqvae.history_path.unlink()
    message = refused(command, capsys, "--vqvae", vqvae.path, *out)
    assert f"Run {vqvae.path} has no model.keras: no epoch has finished yet" in message
    assert not (tmp_path / "run").exists()


def test_command_refuses_an_archive_that_is_gone(linked, command, tmp_path, capsys):
    vqvae = linked[1]
    vqvae.code_grids_path.unlink()
    facts = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**facts, "archive": str(tmp_path / "gone")})
    asked = ["--vqvae", vqvae.path, "--run", tmp_path / "run", *words()]
    message = refused(command, capsys, *asked)
    assert f"{tmp_path / 'gone'}, which is no longer there. Give its new place as --data" in message
    assert not (tmp_path / "run").exists()


def test_command_refuses_a_folder_with_other_things(linked, command, tmp_path, capsys):
    prior, vqvae = linked
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    asked = ["--vqvae", vqvae.path, *words()]
    message = refused(command, capsys, *asked, "--run", tmp_path / "thesis")
    assert "chapter.txt" in message
    before = contents(vqvae.path)
    message = refused(command, capsys, *asked, "--run", vqvae.path)
    assert "kind 'vqvae'; expected 'pixelcnn'" in message
    assert contents(vqvae.path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--channels", "0"], "channels=0"),
        (["--kernel-size", "4"], "kernel_size=4"),
        (["--dropout", "1"], "dropout=1"),
        (["--variants", "-1"], "variants=-1"),
        (["--attention-heads", "3"], "attention_heads=3"),
        (["--epochs", "0"], "epochs=0"),
    ],
)
def test_command_refuses_values_that_make_no_prior(
    command, linked, tmp_path, capsys, changes, named
):
    asked = ["--vqvae", linked[1].path, "--run", tmp_path / "run", *words(), *changes]
    capsys.readouterr()
    try:
        status = command(*asked)
    except SystemExit as stopped:  # the parser says so itself, in a frame
        status = stopped.code
    assert status == 2
    err = capsys.readouterr().err
    assert named in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
