"""Real searches: tiny trainings on phantoms, real processes, real signals."""

import json
import os
import shutil
import signal
import time

import psutil
import pytest
from filelock import FileLock
from helpers import ROOT, captured_command, csv_rows, python, script_main, start

import tuning.resume
from brainslices.errors import InputError
from brainslices.runs.json_files import load_config
from brainslices.runs.run import Run
from vqvae.config import PRESETS, VQVAEConfig, VQVAETraining

COMMAND = ROOT / "scripts" / "tune.py"
SPACE = ROOT / "tests" / "support" / "tiny_space.py"
SHORT = ["--space", SPACE, "--epochs", 2, "--prior-epochs", 1, "--precision", "float32"]
SEARCH = [*SHORT, "--fix", "learning_rate=0.001", "--tuner", "random", "--trials", 2]
# Trains no prior.
FAST = [*SEARCH, "--objective", "val_ssim_foreground"]


def arguments(archive, out, *flags):
    return [COMMAND, "--data", archive.path, "--out", out, *flags]


@pytest.fixture
def run_here(phantom_archive, monkeypatch, capsys):
    """Run the command in this process, which saves two starts of TensorFlow; return its output."""

    def call(function, *arguments):
        return function(*arguments)

    def run(out, *flags):
        script_main(COMMAND)([str(word) for word in arguments(phantom_archive, out, *flags)[1:]])
        return capsys.readouterr().out

    monkeypatch.setattr(tuning.resume, "call", call)
    return run


def read_table(out):
    """Rows of trials.csv by codebook size, without what another run changes."""
    rows = csv_rows(out / "trials.csv")
    columns = [name for name in rows[0] if name.startswith(("score", "val_", "bits_"))]
    table = {row["num_embeddings"]: {name: float(row[name]) for name in columns} for row in rows}
    assert len(table) == len(rows)
    return table


def assert_same_scores(out, searched):
    """The sums of another process may be in another order."""
    scores, expected = (
        {size: row["val_ssim_foreground"] for size, row in read_table(folder).items()}
        for folder in (out, searched)
    )
    assert scores == pytest.approx(expected, rel=1e-4)


def wait_for(condition, timeout=400):
    """Return the first true value of the condition."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def process_tree(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@pytest.fixture(scope="module")
def searched(phantom_archive, tmp_path_factory):
    """An undisturbed search, one for all processes of the test run: folder and output."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp().parent / f"search-{run}"
    if run is None:
        base = tmp_path_factory.mktemp("search")
    base.mkdir(exist_ok=True)
    out, printed = base / "out", base / "printed.txt"
    with FileLock(base / "lock"):
        if not printed.exists():
            words = arguments(phantom_archive, out, *SEARCH, "--report")
            status, text, err = captured_command(*words)
            assert status == 0, err
            printed.write_text(text)
    return out, printed.read_text()


@pytest.mark.slow
def test_search_reports_its_trials_and_trains_both_stages(searched):
    out, printed = searched
    *lines, summary, files, report = printed.strip().splitlines()
    trials = [line for line in lines if not line.endswith(": started")]
    assert [line.split(":")[0] for line in trials] == ["trial 0", "trial 1"]
    assert "2 of 2 trials, best val_rate_distortion" in trials[-1]
    assert summary.startswith("2 trials completed, 0 failed. A codebook of ")
    assert files == f"{out}: trials.csv, best_config.json, figures/, runs/"
    assert report == str(out / "report.html")
    assert (out / "report.html").read_text().count('<tr id="trial-') == 2
    rows = read_table(out)
    for size, row in rows.items():
        expected = 1 - row["val_ssim_foreground"] + 2 * row["bits_per_pixel_prior"]
        assert row["score"] == pytest.approx(expected)
        (folder,) = (out / "runs").glob(f"{int(size):04d}-codes-*")
        assert (folder / "vqvae" / "model.keras").is_file()
        (prior,) = folder.glob("prior-*")
        assert (prior / "model.keras").is_file()
        assert row["bits_per_pixel_order_0"] <= row["bits_per_pixel_raw"]
    for name in ("codebook", "rate_distortion", "learning_curves"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5_000
    model, training = load_config(out / "best_config.json", VQVAEConfig, VQVAETraining)
    best = min(rows, key=lambda size: rows[size]["score"])
    assert (model.num_embeddings, model.channels) == (int(best), (8, 16))
    assert training.epochs == PRESETS["default"].training.epochs


@pytest.mark.slow
def test_finished_search_is_only_reported_again(searched, run_here):
    out, printed = searched
    before = (out / "trials.csv").read_text()
    assert run_here(out, *SEARCH, "--report").splitlines() == printed.splitlines()[-3:]
    assert (out / "trials.csv").read_text() == before


@pytest.mark.slow
@pytest.mark.long
def test_finalists_of_a_finished_search_are_trained_in_full(searched, run_here, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(searched[0], out)
    before = (out / "trials.csv").read_text()
    flags = ["--finalists", 1, "--final-seeds", 1, "--final-epochs", 3, "--final-prior-epochs", 2]
    printed = run_here(out, *SEARCH, *flags)
    assert "2 of 2 trials, 1 of 1 final trainings" in printed
    assert "Trained in full (3 epochs of the VQ-VAE and 2 of the prior)" in printed
    (row,) = csv_rows(out / "finalists.csv")
    assert (row["trial"], row["epochs"], row["final_seed"]) == ("2", "3.0", "0")
    folder = out / "runs" / row["runs"]
    assert folder.name == "final-0"
    assert (folder / "vqvae" / "model.keras").is_file()
    assert len(Run(next(folder.glob("prior-*"))).read_history()["loss"]) == 2
    model, _ = load_config(out / "best_config.json", VQVAEConfig, VQVAETraining)
    assert model.num_embeddings == int(row["num_embeddings"])
    assert (out / "trials.csv").read_text() == before
    with pytest.raises(InputError, match="final_epochs=3 .*now: 4"):
        run_here(out, *SEARCH, *flags, "--final-epochs", 4)


@pytest.mark.slow
@pytest.mark.long
def test_two_workers_train_finalists_after_a_kill_in_a_final_training(
    searched, phantom_archive, run_here, tmp_path
):
    out = tmp_path / "out"
    flags = [*FAST, "--workers", 2, "--finalists", 1, "--final-seeds", 2, "--final-epochs", 3]
    search = start(*arguments(phantom_archive, out, *flags))
    wait_for(lambda: len(list(out.glob("runs/*/final-*/vqvae/state.npz"))) == 2)
    processes = process_tree(search)
    search.kill()
    search.communicate(timeout=60)
    assert_gone(processes)
    assert "2 trials completed, 0 failed" in run_here(out, *flags)
    assert_same_scores(out, searched[0])
    rows = csv_rows(out / "finalists.csv")
    assert [(row["final_seed"], row["epochs"], row["status"]) for row in rows] == [
        ("0", "3.0", "completed"),
        ("1", "3.0", "completed"),
    ]
    assert rows[0]["score"] != rows[1]["score"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_search_stopped_in_a_training_resumes_to_the_same_result(
    searched, phantom_archive, run_here, tmp_path, number
):
    out = tmp_path / "out"
    search = start(*arguments(phantom_archive, out, *FAST))
    wait_for(lambda: list(out.glob("runs/*/vqvae/state.npz")))
    processes = process_tree(search)
    assert len(processes) > 2
    search.send_signal(number)
    _, err = search.communicate(timeout=60)
    assert_gone(processes)
    if number == signal.SIGTERM:
        assert search.returncode == 130
        assert "Rerun the same command" in err
    assert "2 trials completed, 0 failed" in run_here(out, *FAST)
    assert_same_scores(out, searched[0])


def processes_by_role(search):
    """The search's processes by keras-tuner's name, which is also their log's."""
    roles = {}
    for process in psutil.Process(search.pid).children():
        for file in process.open_files():
            if file.path.endswith(".txt"):
                roles[os.path.basename(file.path).removesuffix(".txt")] = process
    return roles


@pytest.mark.slow
@pytest.mark.long
def test_two_workers_survive_kills_of_a_trial_a_worker_and_the_chief(
    searched, phantom_archive, tmp_path
):
    out = tmp_path / "out"
    search = start(*arguments(phantom_archive, out, *FAST, "--workers", 2))
    wait_for(lambda: len(list(out.glob("runs/*/vqvae/state.npz"))) >= 2)
    roles = processes_by_role(search)
    assert {"chief", "worker0", "worker1"} <= set(roles)
    children = roles["worker0"].children()
    next(one for one in children if "resource_tracker" not in " ".join(one.cmdline())).kill()
    roles["worker1"].kill()
    wait_for(
        lambda: (
            processes_by_role(search).get("worker1", roles["worker1"]).pid != roles["worker1"].pid
        )
    )
    processes_by_role(search)["chief"].kill()
    processes = process_tree(search)
    printed, err = search.communicate(timeout=400)
    assert search.returncode == 0, err
    assert "2 trials completed, 0 failed" in printed
    assert_gone(processes)
    assert_same_scores(out, searched[0])


@pytest.mark.slow
@pytest.mark.long
def test_hyperband_trains_promoted_trials_longer(phantom_archive, tmp_path):
    out = tmp_path / "out"
    flags = [*FAST, "--tuner", "hyperband", "--epochs", 3, "--trials", 4]
    process = python(*arguments(phantom_archive, out, *flags), timeout=400)
    assert process.returncode == 0, process.stderr
    assert " 0 failed." in process.stdout
    epochs = [float(row["epochs"]) for row in csv_rows(out / "trials.csv")]
    assert {1.0, 3.0} <= set(epochs)


@pytest.mark.slow
@pytest.mark.long
def test_failed_trials_are_reported_with_their_reason(phantom_archive, tmp_path):
    """Over a chief, which gets less from its workers than a single process has."""
    out = tmp_path / "out"
    flags = [*SHORT, "--fix", "learning_rate=1e30", "num_embeddings=8", "--tuner", "random"]
    flags += ["--trials", 1, "--workers", 2]
    process = python(*arguments(phantom_archive, out, *flags), timeout=200)
    assert process.returncode == 2
    assert "error: All 1 trials of" in process.stderr
    reason = json.loads((out / "trials" / "trial_0" / "failure.json").read_text())["reason"]
    assert reason in process.stderr
    assert "epoch 1" in reason
    trial = json.loads((out / "trials" / "trial_0" / "trial.json").read_text())
    assert trial["status"] == "FAILED"
    assert ",failed," in (out / "trials.csv").read_text()


def test_mistake_is_refused_before_anything_is_written(run_here, tmp_path):
    with pytest.raises(InputError, match="`num_embeddings`.*Received: 'num_embeddings=100'"):
        run_here(tmp_path / "out", *SHORT, "--fix", "num_embeddings=100")
    assert not (tmp_path / "out").exists()
