import dataclasses
import errno
import json

import pytest
from helpers import ROOT, SCRIPT, run_command, script_main, tiny_config, tiny_training

from brainslices import cli
from brainslices.errors import InputError
from vqvae.config import PRESETS


def status_and_message(error, capsys):
    def main():
        if error is not None:
            raise error

    return cli.run(main), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (InputError("`x` must be 1."), 2, "error: `x` must be 1.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/state.npz"),
            2,
            "error: The disk is full (a/state.npz).",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
            2,
            "error: No such file or directory (a/b).\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            2,
            "error: No permission to write (a/b).",
        ),
        (OSError("odd"), 2, "error: odd.\n"),
        (
            FileExistsError(errno.EEXIST, "File exists", "a/.b-12345678.npz"),
            2,
            "error: A file exists where a folder is needed (a).",
        ),
        (KeyboardInterrupt(), 130, "\nstopped.\n"),
        (KeyboardInterrupt("State saved."), 130, "\nstopped. State saved.\n"),
    ],
)
def test_errors_that_the_user_can_fix_are_a_message_and_a_status(error, status, message, capsys):
    received, printed = status_and_message(error, capsys)
    assert (received, printed[: len(message)]) == (status, message)
    assert printed.count("\n") == message.startswith("\n") + bool(message)


@pytest.mark.parametrize("error", [RuntimeError("bug"), ValueError("bug"), TypeError("bug")])
def test_bugs_keep_their_traceback(error, capsys):
    with pytest.raises(type(error), match="bug"):
        status_and_message(error, capsys)


@dataclasses.dataclass(frozen=True)
class Inner:
    batch_size: int
    """Slices per step."""
    widths: tuple[int, ...] = (1, 2)
    """Widths."""


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner


def test_fields_of_nested_dataclasses_are_plain_flags():
    parsed = cli.parse(Outer, ["--name", "a", "--batch-size", "4", "--widths", "3", "4", "5"])
    assert parsed == Outer("a", Inner(4, (3, 4, 5)))


def test_flags_not_given_keep_the_default():
    default = Outer("a", Inner(4))
    assert cli.parse(Outer, [], default) == default
    assert cli.parse(Outer, ["--batch-size", "9"], default) == Outer("a", Inner(9))


def test_own_flags_are_parsed_among_others():
    assert cli.parse_known(Inner, ["--name", "a", "--batch-size", "4", "--help"]) == Inner(4)


@pytest.mark.parametrize(
    ("flags", "status", "part"),
    [
        (["--help"], 0, "--batch-size"),
        (["--name", "a", "--batch-siz", "4"], 2, "--batch-size"),
        (["--name", "a", "--batch-size", "four"], 2, "four"),
        (["--batch-size", "4"], 2, "--name"),
    ],
)
def test_wrong_flags_exit_with_2_and_help_with_0(flags, status, part, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Outer, flags)
    assert stop.value.code == status
    printed = capsys.readouterr()
    assert part in printed.out + printed.err


# The training command


@pytest.fixture
def command(monkeypatch):
    """Run train_vqvae.py in this process with a fake `train`: (status, calls of `train`)."""
    import vqvae.training

    calls = []

    def train(*arguments):
        calls.append(arguments)
        scores = {"ssim": 0.5, "ssim_foreground": 0.25, "train_codebook_usage": 1.0}
        scores["floor_mean_image"] = {"ssim_foreground": 0.125}
        return {"epoch": 1, "epochs": 2, "bits_per_pixel_raw": 0.1, **scores}

    monkeypatch.setattr(vqvae.training, "train", train)
    main = script_main()

    def run(*arguments):
        calls.clear()
        argv = ["--data", "data", "--run", "run", *map(str, arguments)]
        return cli.run(lambda: main(argv)), calls

    return run


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_trained_unchanged(command, preset, capsys):
    status, [(data, run, model, training)] = command("--preset", preset)
    assert (status, str(data), str(run)) == (0, "data", "run")
    assert (model, training) == (PRESETS[preset].model, PRESETS[preset].training)
    printed = capsys.readouterr().out
    assert "best epoch 1 of 2: validation ssim 0.5000, ssim_foreground 0.2500 (mean " in printed


def test_default_preset_needs_no_flag(command):
    _, [(_, _, model, training)] = command()
    assert (model, training) == (PRESETS["default"].model, PRESETS["default"].training)


def test_flags_override_the_preset(command):
    flags = ["--epochs", 3, "--channels", 8, 16, "--codebook", "gradient", "--mirror"]
    _, [(_, _, model, training)] = command("--preset", "seed", *flags)
    expected = dataclasses.replace(PRESETS["seed"].model, channels=(8, 16))
    assert model == expected
    assert (training.epochs, training.mirror) == (3, True)


def test_flags_override_the_config_of_a_run(command, tmp_path):
    path = tmp_path / "config.json"
    parts = {"model": tiny_config(), "training": tiny_training()}
    written = {name: dataclasses.asdict(part) for name, part in parts.items()}
    path.write_text(json.dumps({"format_version": 1, "kind": "vqvae", **written}))
    _, [(_, _, model, training)] = command("--config", path)
    assert (model, training) == (tiny_config(), tiny_training())
    _, [(_, _, model, _)] = command("--config", path, "--num-embeddings", 64)
    assert model == tiny_config(num_embeddings=64)


def test_invalid_config_is_a_message_and_2(command, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": {"num_embedings": 1}, "training": {}}))
    assert command("--config", path) == (2, [])
    message = capsys.readouterr().err
    assert message.startswith(f"error: Unknown key `num_embedings` in {path}.")
    assert "`num_embeddings`" in message
    assert command("--config", tmp_path / "no.json") == (2, [])
    assert f"{tmp_path}/no.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--num-embeddings", "1"], "Received: num_embeddings=1."),
        (["--epochs", "0"], "Received: epochs=0."),
        (["--codebook", "gradient"], "0 with codebook='gradient'"),
    ],
)
def test_invalid_values_are_a_message_and_2(command, flags, part, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*flags)
    assert stop.value.code == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert part in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--preset", "none"], "none"),
        (["--precision", "float8"], "float8"),
        (["--epochs", "1.5"], "1.5"),
        (["--epoch", "3"], "--epoch"),
    ],
)
def test_invalid_flags_are_a_message_and_2(command, flags, part, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*flags)
    assert stop.value.code == 2
    assert part in capsys.readouterr().err


def test_absent_archive_is_status_2(tmp_path, capsys):
    assert run_command(SCRIPT, "--data", tmp_path / "no", "--run", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ")
    assert str(tmp_path / "no") in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_not_said_to_lack_write_permission(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "model.keras"
    path.touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    cli.print_error(PermissionError(errno.EACCES, "Permission denied", str(path)))
    assert capsys.readouterr().err.startswith(f"error: No permission to read ({path}).")


def test_control_characters_of_a_name_are_escaped(capsys):
    cli.print_error(InputError("no subject in a\rb\x1b[2Jé.png"))
    assert capsys.readouterr().err == "error: no subject in a\\rb\\x1b[2Jé.png\n"


def test_notes_of_an_error_are_printed(capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "run/state.npz")
    error.add_note("The last good checkpoint is of epoch 2.")
    cli.print_error(error)
    printed = capsys.readouterr().err
    assert "disk is full (run/state.npz)" in printed
    assert printed.endswith("The last good checkpoint is of epoch 2.\n")


def test_benchmark_into_a_folder_is_refused_before_measuring(tmp_path):
    main = script_main(ROOT / "scripts" / "benchmark.py")
    with pytest.raises(InputError, match="`out` must be a JSON file"):
        main(["--data", str(tmp_path / "none"), "--out", str(tmp_path)])
