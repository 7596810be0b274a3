"""Fuzzing with corrupt files: each is refused with a message, or read without an error."""

import contextlib
import dataclasses
import random
import resource
import shutil
import signal

import numpy as np
import pytest
from corruption import corrupt
from file_copies import (
    READ_BY,
    READERS,
    add_subjects,
    commands,
    copy_sources,
    hashes,
    write_finished_search,
    write_results,
)
from helpers import (
    ROOT,
    captured_command,
    python,
    save_image,
    tiny_config,
    tiny_prior_config,
    tiny_prior_training,
)
from helpers import tiny_training as tiny_vqvae_training
from volume_helpers import head, save_volume

from brainslices.errors import InputError

SEED, TIMEOUT_S = 0, 120
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
def sources(phantom_archive, trained_vqvae, trained_prior, tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    config = dataclasses.asdict(tiny_config()), dataclasses.asdict(tiny_vqvae_training())
    return {
        "archive": add_subjects(shutil.copytree(phantom_archive.path, root / "archive")),
        "vqvae": trained_vqvae,
        "prior": trained_prior,
        "results": write_results(root / "results"),
        "search": write_finished_search(root / "search", *config),
    }


SEARCH = ["--space", ROOT / "tests" / "support" / "tiny_space.py", "--epochs", 1]
SEARCH += ["--prior-epochs", 1, "--precision", "float32", "--fix", "learning_rate=0.001"]
SEARCH += ["--tuner", "random", "--trials", 2, "--objective", "val_ssim_foreground"]


@pytest.fixture(scope="module")
def trained_sources(sources, tmp_path_factory):
    """A search that has run, and a prior with conditions."""
    from brainslices.data.subject_table import load_subjects
    from pixelcnn.training import train
    from vqvae.encode import load_or_encode

    root = tmp_path_factory.mktemp("trained")
    config = tiny_prior_config(conditions=("age", "sex"))
    training = tiny_prior_training(epochs=1)
    grids = load_or_encode(sources["vqvae"], variants=training.variants)
    train(grids, root / "conditional", config, training, load_subjects(sources["archive"]))
    search = ("--data", sources["archive"], "--out", root / "search", *SEARCH)
    done = python(ROOT / "scripts" / "tune.py", *search, timeout=400)
    assert done.returncode == 0, done.stderr
    return {**sources, "search": root / "search", "conditional": root / "conditional"}


def run_script(name, *words):
    """Run a command in this process; return its exit status and what it printed to stderr."""
    status, _, log = captured_command(ROOT / "scripts" / f"{name}.py", *words)
    return status, log


@contextlib.contextmanager
def time_limit():
    def stop(number, frame):
        raise TimeoutError("the case does not end")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def fuzz(sources, tmp_path, count, run_case, needed=None):
    """Run a case on `count` copies with one corrupt file each; return the faults, by file.

    `needed` maps the folder of the corrupt file to the folders to copy, by default all.
    """
    faults = []
    for seed in range(SEED, SEED + count):
        rng, root = random.Random(seed), tmp_path / str(seed)
        folder = rng.choice([*sources])
        copies = copy_sources(sources, root, needed and needed[folder])
        path = rng.choice(sorted(file for file in (root / folder).rglob("*.*") if file.is_file()))
        name = f"seed {seed}: {folder}/{corrupt(path, rng)}"
        before = hashes(root)
        try:
            with time_limit():
                is_refused = run_case(folder, copies, rng, path)
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            is_refused = False
        if is_refused:
            now = hashes(root)
            if changed := {file for file in before if now.get(file) != before[file]} - {path}:
                faults.append(f"{name}: changed {sorted(changed)}")
        shutil.rmtree(root)
    return faults


def read_case(folder, copies, rng, path):
    from brainslices.runs.loading import load_model

    try:
        if path.suffix == ".keras":
            load_model(path.parent, {"vqvae": "vqvae", "prior": "pixelcnn"}[folder])
        READERS[folder](copies)
    except InputError as error:
        assert str(copies.root) in str(error)
    return True


def command_case(folder, copies, rng, path):
    import keras

    command = rng.choice(commands(folder, copies, SEARCH))
    status, log = run_script(*command)
    assert status in (0, 2), f"{command}: status {status}: {log[-500:]}"
    assert "Traceback" not in log, f"{command}: {log[-500:]}"
    assert status == 0 or "error" in log.lower(), f"{command}: {log[-500:]}"
    keras.utils.clear_session()  # frees the models of earlier cases
    return status == 2


def source_case(folder, copies, rng, path):
    table = [] if folder == "volumes" else ["--table", copies.root / folder / "table.csv"]
    options = ["--source", copies.root / folder, *table, "--out", copies.root / "out"]
    status, log = run_script("prepare_data", *options)
    assert status in (0, 2), log[-500:]
    assert status == 0 or "case_" in log or "table.csv" in log
    return True


def assert_none(faults):
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_corrupt_sources_are_refused_by_name(raw_sources, tmp_path):
    assert_none(fuzz(raw_sources, tmp_path, LIGHT // 6, source_case))


@pytest.mark.long
def test_many_corrupt_sources_are_refused_by_name(raw_sources, tmp_path):
    assert_none(fuzz(raw_sources, tmp_path, LONG // 2, source_case))


@pytest.mark.slow
def test_corrupt_files_are_refused_by_name(sources, tmp_path):
    assert_none(fuzz(sources, tmp_path, LIGHT, read_case, READ_BY))


@pytest.mark.long
def test_many_corrupt_files_are_refused_by_name(sources, tmp_path):
    assert_none(fuzz(sources, tmp_path, LONG, read_case, READ_BY))


@pytest.mark.long
def test_commands_on_corrupt_files_end_with_a_message(trained_sources, tmp_path):
    assert_none(fuzz(trained_sources, tmp_path, COMMANDS, command_case))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024**2  # KiB on Linux


NUMBERS = {
    "prepare_data": ["slices 1000000000", "size 1000000 1000000", "subjects -1", "slices 0"]
    + ["fractions nan 0.5 0.5", "fractions inf -inf 1", "positions nan nan", "seed -1"]
    + [
        "subjects 99999999999999999999",
        "size 0 64",
        "size 64 40000",
        "grid-multiple 100000000000000000000",
    ],
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
    "score": ["batch-size 0", "restore -1", "seed -1"],
    "studio": ["port 0", "port 65536", "port -1"],
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
    "score": ["restore 1000000000000"],
    "train_pixelcnn": ["variants 1000000000000"],
}


@pytest.fixture(scope="module")
def copies(sources, tmp_path_factory):
    """Copies that no command with an invalid number may change."""
    return copy_sources(sources, tmp_path_factory.mktemp("copies"))


def check_number(copies, out, name, flag):
    inputs = {
        "prepare_data": ("--source", "phantom", "--out", out),
        "train_vqvae": ("--data", copies.archive, "--run", out),
        "train_pixelcnn": ("--vqvae", copies.vqvae, "--run", out),
        "tune": ("--data", copies.archive, "--out", out),
        "sample": ("--run", copies.prior, "--out", out),
        "reconstruct": ("--run", copies.vqvae, "--data", copies.archive, "--out", out),
        "encode_codes": ("--run", copies.vqvae),
        "score": ("--run", copies.prior, "--data", copies.archive, "--out", out),
        "studio": ("--run", copies.prior),
    }
    before, (word, *values) = hashes(copies.root), flag.split()
    with time_limit():
        status, log = run_script(name, *inputs[name], f"--{word}", *values)
    assert status == 2, log
    assert "Traceback" not in log
    assert word.replace("-", "_") in log.replace("-", "_")
    assert hashes(copies.root) == before
    assert not out.exists()


def pairs(numbers):
    return [(name, flag) for name, flags in numbers.items() for flag in flags]


@pytest.mark.parametrize(("name", "flag"), pairs(NUMBERS))
def test_numbers_out_of_range_are_refused_before_work(copies, tmp_path, name, flag):
    check_number(copies, tmp_path / "out", name, flag)


@pytest.mark.long
@pytest.mark.parametrize(("name", "flag"), pairs(LATER_NUMBERS))
def test_numbers_that_a_model_cannot_meet_are_refused(copies, tmp_path, name, flag):
    check_number(copies, tmp_path / "out", name, flag)
