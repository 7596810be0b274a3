"""Real searches: tiny trainings on phantoms, real processes, real signals."""

import csv
import json
import os
import shutil
import signal
import socket
import time

import psutil
import pytest
from filelock import FileLock
from helpers import ROOT, python, start

from brainslices.runs.json_files import load_config, read_json
from vqvae.config import VQVAEConfig, VQVAETraining

COMMAND = ROOT / "scripts" / "tune.py"
SPACE = ["--space", ROOT / "tests" / "support" / "tiny_space.py", "--fix", "learning_rate=0.001"]
SHORT = ["--epochs", 2, "--prior-epochs", 1, "--precision", "float32"]
# Three trials of three codebook sizes, so that every search tries them all.
SEARCH = [*SPACE, *SHORT, "--tuner", "random", "--trials", 3]
FAST = [*SEARCH, "--objective", "val_ssim_foreground"]
# What a process of its own or another order of sums may change.
LOOSE = {"seconds"}

pytestmark = pytest.mark.slow


def words(archive, out, *asked):
    return [COMMAND, "--data", archive.path, "--out", out, *asked]


def table(out):
    """Rows of trials.csv by codebook size, as numbers where they are."""
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        numbers = {name: float(value) for name, value in row.items() if _is_number(value)}
        found[row["num_embeddings"]] = {
            name: value for name, value in numbers.items() if name not in {"trial", *LOOSE}
        }
    assert len(found) == len(rows)
    return found


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def assert_begins_as(first, whole):
    """The trials of a search are those with which another began."""
    first, whole = table(first), table(whole)
    assert first
    for size, row in first.items():
        assert row == pytest.approx(whole[size], rel=1e-4)


def wait_for(condition, timeout=200):
    """The condition's first value that counts as true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found


def tree(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def assert_gone(processes):
    """All have ended soon: none outlives the search that started it."""
    gone, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@pytest.fixture(scope="module")
def searched(phantom_archive, tmp_path_factory):
    """An undisturbed search, one for all processes of the test run: folder, and what it printed."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp().parent / f"search-{run}"
    if run is None:
        base = tmp_path_factory.mktemp("search")
    base.mkdir(exist_ok=True)
    out, printed = base / "out", base / "printed.txt"
    with FileLock(base / "lock"):
        if not printed.exists():
            ran = python(*words(phantom_archive, out, *SEARCH), timeout=400)
            assert ran.returncode == 0, ran.stderr
            printed.write_text(ran.stdout)
    return out, printed.read_text()


def test_search_tells_its_trials_and_what_it_found(searched):
    out, printed = searched
    *trials, found, files = printed.strip().splitlines()
    assert [line.split(":")[0] for line in trials] == ["trial 0", "trial 1", "trial 2"]
    assert "3 of 3 trials, best val_rate_distortion" in trials[-1]
    assert found.startswith("3 trials completed, 0 failed. A codebook of ")
    assert files == f"{out}: trials.csv, best_config.json, figures/, runs/"


def test_both_stages_of_every_trial_are_there(searched):
    out, _ = searched
    rows = table(out)
    assert set(rows) == {"8", "16", "32"}
    for size, row in rows.items():
        expected = 1 - row["val_ssim_foreground"] + 2 * row["bits_per_pixel_prior"]
        assert row["score"] == pytest.approx(expected)
        (folder,) = (out / "runs").glob(f"00{int(size):02d}-codes-*")
        assert (folder / "vqvae" / "model.keras").is_file()
        (prior,) = folder.glob("prior-*")
        assert (prior / "model.keras").is_file()
        assert row["bits_per_pixel_order_0"] <= row["bits_per_pixel_raw"]
    for name in ("codebook", "rate_distortion", "learning_curves"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5_000


def test_best_configuration_is_what_training_takes(searched):
    out, _ = searched
    model, training = load_config(out / "best_config.json", VQVAEConfig, VQVAETraining)
    rows = table(out)
    best = min(rows, key=lambda size: rows[size]["score"])
    assert (model.num_embeddings, model.channels) == (int(best), (8, 16))
    assert training.epochs > 20


def test_same_command_only_reports_and_other_searches_are_refused(searched, phantom_archive):
    out, printed = searched
    before = (out / "trials.csv").read_text()
    ran = python(*words(phantom_archive, out, *SEARCH), timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-2:] == printed.splitlines()[-2:]
    assert (out / "trials.csv").read_text() == before
    ran = python(*words(phantom_archive, out, *SEARCH, "--epochs", 3), timeout=200)
    assert ran.returncode == 2
    assert f"error: The search in {out} was begun with epochs=2 (asked: 3)." in ran.stderr
    assert (out / "trials.csv").read_text() == before


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_ended_search_goes_on_to_the_same_result(searched, phantom_archive, tmp_path, number):
    """The command ends as its first trial trains."""
    out = tmp_path / "out"
    asked = words(phantom_archive, out, *SEARCH, "--trials", 2)
    search = start(*asked)
    wait_for(lambda: list(out.glob("runs/*/vqvae/state.npz")))
    processes = tree(search)
    assert len(processes) > 2
    search.send_signal(number)
    _, err = search.communicate(timeout=60)
    assert_gone(processes)
    if number == signal.SIGTERM:
        assert search.returncode == 130
        assert "The same command goes on from there." in err
    ran = python(*asked, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert_begins_as(out, searched[0])
    assert len(table(out)) == 2


def test_two_workers_whose_chief_and_trials_are_killed(searched, phantom_archive, tmp_path):
    out = tmp_path / "out"
    search = start(*words(phantom_archive, out, *FAST, "--workers", 2))
    wait_for(lambda: len(list(out.glob("runs/*/vqvae/state.npz"))) >= 2)
    by_name = roles(search)
    assert {"chief", "worker0", "worker1"} <= set(by_name)
    # A trial's own process first: its worker lets it go on. Then a worker, then the chief.
    below = by_name["worker0"].children()
    next(one for one in below if "resource_tracker" not in " ".join(one.cmdline())).kill()
    by_name["worker1"].kill()
    wait_for(lambda: roles(search).get("worker1", by_name["worker1"]).pid != by_name["worker1"].pid)
    roles(search)["chief"].kill()
    processes = tree(search)
    printed, err = search.communicate(timeout=400)
    assert search.returncode == 0, err
    assert "3 trials completed, 0 failed" in printed
    assert_gone(processes)
    rows, expected = table(out), table(searched[0])
    for size, row in rows.items():
        score = expected[size]["val_ssim_foreground"]
        assert row["score"] == pytest.approx(score, rel=1e-4)


@pytest.mark.long
def test_hyperband_trains_the_promoted_on(phantom_archive, tmp_path):
    out = tmp_path / "out"
    asked = [*SPACE, *SHORT, "--objective", "val_ssim_foreground", "--tuner", "hyperband"]
    asked += ["--epochs", 3, "--trials", 4]
    ran = python(*words(phantom_archive, out, *asked), timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert " 0 failed." in ran.stdout
    with (out / "trials.csv").open() as file:
        epochs = [float(row["epochs"]) for row in csv.DictReader(file)]
    assert {1.0, 3.0} <= set(epochs)


def roles(search):
    """The search's processes by what keras-tuner calls them."""
    found = {}
    for each in psutil.Process(search.pid).children():
        for file in each.open_files():
            if file.path.endswith(".txt"):
                found[os.path.basename(file.path).removesuffix(".txt")] = each
    return found


@pytest.mark.long
def test_failing_trials_are_told_with_their_reason(phantom_archive, tmp_path):
    """Over a chief, which hears less from its workers than one process knows."""
    out = tmp_path / "out"
    asked = ["--space", SPACE[1], "--fix", "learning_rate=1e30", "num_embeddings=8", *SHORT]
    asked += ["--tuner", "random", "--trials", 1, "--workers", 2]
    ran = python(*words(phantom_archive, out, *asked), timeout=200)
    assert ran.returncode == 2
    assert "error: All 1 trials of" in ran.stderr
    assert "is not finite, as seen in epoch 1" in ran.stderr
    told = json.loads((out / "trials" / "trial_0" / "trial.json").read_text())
    assert told["status"] == "FAILED"
    assert ",failed," in (out / "trials.csv").read_text()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--fix", "num_embeddings=100"], "`num_embeddings` must be one of 16, 32"),
        (["--fix", "codes=16"], "with a name of the space: num_embeddings, downsampling"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(phantom_archive, tmp_path, asked, said):
    ran = python(*words(phantom_archive, tmp_path / "out", *asked))
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: ")
    assert said in ran.stderr
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_search_are_left_alone(phantom_archive, tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    ran = python(*words(phantom_archive, tmp_path))
    assert ran.returncode == 2
    assert "holds other things (thesis.txt) and no search to go on with" in ran.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]


def test_worker_without_a_chief_ends_within_a_minute(phantom_archive, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    began = time.monotonic()
    ran = python(
        *words(phantom_archive, tmp_path / "out"), KERASTUNER_TUNER_ID="worker0", **address
    )
    assert ran.returncode == 2
    assert f"The chief of the search cannot be reached at 127.0.0.1:{port}" in ran.stderr
    assert time.monotonic() - began < 60
    ran = python(*words(phantom_archive, tmp_path / "out"), KERASTUNER_TUNER_ID="worker0")
    assert ran.returncode == 2
    assert "KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT must be set too" in ran.stderr


def test_a_search_in_use_is_not_entered(searched, phantom_archive, tmp_path):
    out = shutil.copytree(searched[0], tmp_path / "out")
    with FileLock(out / ".lock"):
        ran = python(*words(phantom_archive, out, *SEARCH))
    assert ran.returncode == 2
    assert "is in use by another search" in ran.stderr
    assert read_json(out / "search.json")["search"]["trials"] == 3
