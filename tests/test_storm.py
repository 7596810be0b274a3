"""Hundreds of damaged files: each is refused with a message, or does no harm."""

import contextlib
import hashlib
import io
import random
import resource
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, save_image, script_main
from storm import damage
from volume_helpers import head, save_volume

from brainslices import cli
from brainslices.data.archive import SliceArchive
from brainslices.data.code_grids import CodeGrids
from brainslices.errors import InputError
from brainslices.runs.json_files import load_config, read_json, write_json
from brainslices.runs.run import Run

SEED, TIMEOUT_S = 0, 60
LIGHT, LONG, COMMANDS = 300, 2000, 500


@pytest.fixture(scope="module")
def raw_sources(tmp_path_factory):
    """A folder of pictures with a table, and one of volumes."""
    root = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    rows = []
    (root / "volumes").mkdir()
    for subject in range(5):
        for number in range(2):
            name = f"case_{subject:03}_slice_{number}.png"
            save_image(root / "pictures" / name, rng.integers(0, 255, (64, 64), "uint8"))
            rows.append(f"{name},s{subject},{('train', 'validate', 'test')[subject % 3]},{number}")
        save_volume(root / "volumes" / f"case_{subject:03}.nii", head())
    table = "\n".join(["file,subject,split,position", *rows])
    (root / "pictures" / "table.csv").write_text(table)
    return {name: root / name for name in ("pictures", "volumes")}


@pytest.fixture(scope="module")
def sources(phantom_archive, trained_vqvae, trained_prior):
    return {"archive": phantom_archive.path, "vqvae": trained_vqvae, "prior": trained_prior}


def make_world(sources, root):
    """Copy an archive and both runs, so that they refer to each other's copies."""
    for name, path in sources.items():
        shutil.copytree(path, root / name, ignore=shutil.ignore_patterns("logs", "figures", ".*"))
    if "vqvae" not in sources:
        return SimpleNamespace(root=root)
    world = SimpleNamespace(
        root=root, archive=root / "archive", vqvae=Run(root / "vqvae"), prior=Run(root / "prior")
    )
    environment = read_json(world.vqvae.environment_path)
    write_json(world.vqvae.environment_path, {**environment, "archive": str(world.archive)})
    config = read_json(world.prior.config_path)
    write_json(world.prior.config_path, {**config, "vqvae_run": str(world.vqvae.path)})
    return world


def read_archive(world):
    archive = SliceArchive.open(world.archive)
    return archive.load([0, len(archive.index) - 1])


def read_vqvae(world):
    from brainslices.training.checkpoint import _read_latest
    from vqvae.config import VQVAEConfig, VQVAETraining

    run = world.vqvae
    run.open_config("vqvae")
    load_config(run.config_path, VQVAEConfig, VQVAETraining)
    run.read_environment(), run.read_history(), run.read_metrics(), run.read_mean_image((64, 64))
    CodeGrids.load(run.code_grids_path)
    return _read_latest(run)


def read_prior(world):
    from pixelcnn.config import PixelCNNConfig, PixelCNNTraining
    from pixelcnn.provenance import load_provenance

    load_config(world.prior.config_path, PixelCNNConfig, PixelCNNTraining)
    return load_provenance(world.prior).positions


READERS = {"archive": read_archive, "vqvae": read_vqvae, "prior": read_prior}


def commands(folder, world, out):
    """The command lines that read the files of a folder."""
    archive, vqvae, prior = world.archive, world.vqvae.path, world.prior.path
    reads = {
        "archive": [
            ("reconstruct", "--run", vqvae, "--data", archive, "--out", out),
            ("encode_codes", "--run", vqvae, "--data", archive),
            ("train_vqvae", "--run", out, "--data", archive, "--epochs", "0"),
            ("prepare_data", "--source", archive, "--out", out),
        ],
        "vqvae": [
            ("reconstruct", "--run", vqvae, "--data", archive, "--out", out),
            ("encode_codes", "--run", vqvae),
            ("export", "--run", vqvae, "--out", out),
            ("train_vqvae", "--run", vqvae, "--data", archive, "--config", vqvae / "config.json"),
            ("train_pixelcnn", "--run", out, "--vqvae", vqvae, "--epochs", "0"),
        ],
        "prior": [
            ("sample", "--run", prior, "--count", "1", "--out", out),
            ("export", "--run", prior, "--out", out),
            ("train_pixelcnn", "--run", prior, "--vqvae", vqvae, "--config", prior / "config.json"),
        ],
    }
    return reads[folder]


def hashes(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_command(name, *arguments):
    """Run a command in this process: its exit status and what it printed to stderr."""
    main = script_main(ROOT / "scripts" / f"{name}.py")
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as log,
    ):
        try:
            status = cli.run(lambda: main([str(word) for word in arguments]))
        except SystemExit as stop:
            status = stop.code
    return status, log.getvalue()


@contextlib.contextmanager
def time_limit():
    def stop(number, frame):
        raise TimeoutError("the case hangs")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def storm(sources, tmp_path, count, run_case):
    """Run a case for each of `count` damaged worlds: the faults, by what was damaged."""
    faults = []
    for seed in range(SEED, SEED + count):
        rng, root = random.Random(seed), tmp_path / str(seed)
        world = make_world(sources, root)
        folder = rng.choice([*sources])
        path = rng.choice(sorted((root / folder).glob("*.*")))
        name = f"seed {seed}: {folder}/{damage(path, rng)}"
        sound = hashes(root)
        try:
            with time_limit():
                is_refused = run_case(folder, world, rng)
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            is_refused = False
        if is_refused:
            now = hashes(root)
            if changed := {file for file in sound if now.get(file) != sound[file]} - {path}:
                faults.append(f"{name}: changed {sorted(changed)}")
        shutil.rmtree(root)
    return faults


def read_case(folder, world, rng):
    try:
        READERS[folder](world)
    except InputError as error:
        assert str(world.root) in str(error)
    return True


def command_case(folder, world, rng):
    import keras

    command = rng.choice(commands(folder, world, world.root / "out"))
    status, log = run_command(*command)
    assert status in (0, 2), f"{command}: status {status}: {log[-500:]}"
    assert "Traceback" not in log, f"{command}: {log[-500:]}"
    assert status == 0 or "error" in log.lower(), f"{command}: {log[-500:]}"
    keras.utils.clear_session()  # the models of earlier cases are no case's memory
    return status == 2


def source_case(folder, world, rng):
    table = [] if folder == "volumes" else ["--table", world.root / folder / "table.csv"]
    options = ["--source", world.root / folder, *table, "--out", world.root / "out"]
    status, log = run_command("prepare_data", *options)
    assert status in (0, 2), log[-500:]
    assert status == 0 or "case_" in log or "table.csv" in log
    return True


@pytest.mark.slow
def test_damaged_sources_are_refused_by_name(raw_sources, tmp_path):
    assert storm(raw_sources, tmp_path, LIGHT // 6, source_case) == []


@pytest.mark.long
def test_many_damaged_sources_are_refused_by_name(raw_sources, tmp_path):
    assert storm(raw_sources, tmp_path, LONG // 2, source_case) == []


@pytest.mark.slow
def test_damaged_files_are_refused_by_name(sources, tmp_path):
    assert storm(sources, tmp_path, LIGHT, read_case) == []


@pytest.mark.long
def test_many_damaged_files_are_refused_by_name(sources, tmp_path):
    assert storm(sources, tmp_path, LONG, read_case) == []


@pytest.mark.long
def test_commands_on_damaged_files_end_with_a_message(sources, tmp_path):
    assert storm(sources, tmp_path, COMMANDS, command_case) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024**2  # KiB on Linux


NUMBERS = {
    "prepare_data": ["slices 1000000000", "size 1000000 1000000", "subjects -1", "slices 0"]
    + ["fractions nan 0.5 0.5", "fractions inf -inf 1", "positions nan nan", "seed -1"]
    + ["subjects 99999999999999999999", "size 0 64", "grid-multiple 100000000000000000000"],
    "train_vqvae": ["channels 100000000000000000000 64", "epochs 0", "batch-size -1", "decay nan"]
    + ["epochs 1000000000000", "learning-rate inf", "num-embeddings 1000000000", "seed -1"]
    + ["embedding-dim 1000000000", "encoder-blocks 1000000000", "magnification 1e9"],
    "train_pixelcnn": ["channels 100000000000000000000", "layers 1000000000", "dropout nan"]
    + ["variants -1", "head-width 1000000000000", "warmup-steps 1000000000000000000000"]
    + ["kernel-size 99999999999", "position-frequencies 10000000000000"],
    "tune": ["trials 1000000000000000", "workers 1000000000", "rate-weight nan", "epochs 0"],
    "sample": ["count 0", "batch-size 0", "seed -1"],
    "reconstruct": ["batch-size 0"],
    "encode_codes": ["variants -1"],
}
# These load a model first.
LATER_NUMBERS = {
    "sample": ["count 1000000000", "count 100000000000000000000000000", "position nan", "top-k 0"]
    + [
        "position 5",
        "temperature nan",
        "temperature -1",
        "top-p 1e9",
        "top-k 10000000000000000000",
    ],
    "encode_codes": ["variants 1000000000000"],
    "train_pixelcnn": ["variants 1000000000000"],
}


def check_number(sources, tmp_path, name, flag):
    world, out = make_world(sources, tmp_path / "world"), tmp_path / "out"
    inputs = {
        "prepare_data": ("--source", "phantom", "--out", out),
        "train_vqvae": ("--data", world.archive, "--run", out),
        "train_pixelcnn": ("--vqvae", world.vqvae.path, "--run", out),
        "tune": ("--data", world.archive, "--out", out),
        "sample": ("--run", world.prior.path, "--out", out),
        "reconstruct": ("--run", world.vqvae.path, "--data", world.archive, "--out", out),
        "encode_codes": ("--run", world.vqvae.path),
    }
    sound, (word, *values) = hashes(world.root), flag.split()
    with time_limit():
        status, log = run_command(name, *inputs[name], f"--{word}", *values)
    assert status == 2, log
    assert "Traceback" not in log
    assert word.replace("-", "_") in log.replace("-", "_")
    assert hashes(world.root) == sound
    assert not out.exists()


def pairs(numbers):
    return [(name, flag) for name, flags in numbers.items() for flag in flags]


@pytest.mark.parametrize(("name", "flag"), pairs(NUMBERS))
def test_numbers_out_of_range_are_refused_before_work(sources, tmp_path, name, flag):
    check_number(sources, tmp_path, name, flag)


@pytest.mark.long
@pytest.mark.parametrize(("name", "flag"), pairs(LATER_NUMBERS))
def test_numbers_that_a_model_cannot_meet_are_refused(sources, tmp_path, name, flag):
    check_number(sources, tmp_path, name, flag)
