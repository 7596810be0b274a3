"""The oracles, without any training: scores are made up."""

import errno
import json
import math
import re

import keras_tuner
import numpy as np
import pytest

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from tuning.config import SearchConfig
from tuning.records import read_trials
from tuning.tuner import Searcher, make_oracle
from tuning.workers import CallFailed

FIXED = (
    *("width=64", "embedding_dim=32", "downsampling=8", "magnification=1.2"),
    "commitment_cost=0.25",
)
TUNERS = ["random", "bayesian", "hyperband"]


def config(tuner, **changes):
    options = {"space": "full", "fix": FIXED, "trials": 8, "epochs": 9, "seed": 0}
    return SearchConfig(tuner=tuner, **{**options, **changes})


def oracle_in(folder, settings):
    """A new oracle, as a process makes it that goes on with a search."""
    oracle = make_oracle(settings)
    oracle._set_project_dir(str(folder), "trials")
    if (folder / "trials" / "oracle.json").exists():
        oracle.reload()
    return oracle


def score(values):
    """Best at 256 codes and a learning rate of 0.001."""
    distance = abs(math.log2(values["num_embeddings"]) - 8)
    return distance + abs(math.log(values["learning_rate"] / 1e-3))


def run(folder, settings, disturb=lambda moment, oracle: oracle):
    """A search of one worker; `disturb` may put another oracle in the place of the one there is."""
    oracle = oracle_in(folder, settings)
    tried = []
    while True:
        trial = oracle.create_trial("one")
        if trial.status == "STOPPED":
            return tried
        oracle = disturb("created", oracle)
        if "one" not in oracle.ongoing_trials:
            again = oracle.create_trial("one")
            assert (again.trial_id, again.hyperparameters.values) == (
                trial.trial_id,
                trial.hyperparameters.values,
            )
        values = trial.hyperparameters.values
        oracle.update_trial(trial.trial_id, {settings.objective: score(values)})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        oracle.save()
        oracle = disturb("ended", oracle)
        tried.append(values)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_read_back_at_every_moment_is_the_undisturbed(tmp_path, tuner):
    settings = config(tuner)
    whole = run(tmp_path / "whole", settings)
    assert len(whole) == 8
    cut = run(
        tmp_path / "cut", settings, lambda moment, oracle: oracle_in(tmp_path / "cut", settings)
    )
    assert cut == whole


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_trial_that_the_oracle_does_not_know_yet_is_made_again(tmp_path, tuner):
    """Killed between the writing of a trial's file and the oracle's."""
    settings, path = config(tuner), tmp_path / "cut" / "trials" / "oracle.json"
    before = {}

    def disturb(moment, oracle):
        if moment == "created" and before:
            path.write_bytes(before["state"])
            return oracle_in(tmp_path / "cut", settings)
        before["state"] = path.read_bytes()
        return oracle

    whole = run(tmp_path / "whole", settings)
    assert run(tmp_path / "cut", settings, disturb) == whole


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_seed_decides_also_where_it_is_zero(tmp_path, tuner):
    first = run(tmp_path / "a", config(tuner))
    assert run(tmp_path / "b", config(tuner)) == first
    assert run(tmp_path / "c", config(tuner, seed=1)) != first


def test_bayesian_search_comes_nearer_than_its_first_trials(tmp_path):
    tried = [score(values) for values in run(tmp_path, config("bayesian", trials=14))]
    assert min(tried[7:]) < min(tried[:6])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_small_space_is_tried_out_and_nothing_twice(tmp_path, tuner, seed):
    settings = config(tuner, space="codebook", fix=(), trials=20, seed=seed)
    oracle, tried = oracle_in(tmp_path, settings), set()
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        values = trial.hyperparameters.values
        tried.add(tuple(values.items()))
        oracle.update_trial(trial.trial_id, {settings.objective: values["num_embeddings"] / 1000})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert len(tried) == len(oracle.trials) == 18


def test_hyperband_trains_the_better_ones_longer(tmp_path):
    tried = run(tmp_path, config("hyperband", trials=30))
    short = [values for values in tried if values["tuner/epochs"] < 9]
    longer = [values for values in tried if values.get("tuner/trial_id") is not None]
    assert short
    assert longer
    first = [score(values) for values in tried if values["tuner/round"] == 0]
    assert np.mean([score(values) for values in longer]) < np.mean(first)


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    whole = run(tmp_path / "whole", config("random"))
    assert run(tmp_path / "more", config("random", trials=5)) == whole[:5]
    assert run(tmp_path / "more", config("random")) == whole[5:]


def test_an_ended_trial_is_not_dealt_again(tmp_path):
    """Killed before the oracle noted that the trial is no longer under way."""
    settings = config("random", trials=12)
    oracle = oracle_in(tmp_path, settings)
    trial = oracle.create_trial("one")
    trial.status, trial.message = "FAILED", "Error: reason"
    oracle.end_trial(trial)
    again = oracle_in(tmp_path, settings)
    assert again.create_trial("one").trial_id != trial.trial_id
    for _ in range(11):
        trial = again.create_trial("one")
        trial.status = "FAILED"
        again.end_trial(trial)
    assert list(oracle_in(tmp_path, settings).trials) == list(again.trials)


def test_trial_that_the_oracle_forgot_leaves_nothing(tmp_path):
    """Killed as it made a trial; then more are asked for, whose numbers have more digits."""
    oracle = oracle_in(tmp_path, config("random", trials=10))
    state = {}
    for _ in range(2):
        state = json.loads(json.dumps(oracle.get_state()))
        trial = oracle.create_trial("one")
        oracle.ongoing_trials.clear()
    write_json(tmp_path / "trials" / "oracle.json", state)
    again = oracle_in(tmp_path, config("random", trials=100))
    folders = {path.name for path in (tmp_path / "trials").glob("trial_*")}
    assert folders == {"trial_00"} == {f"trial_{name}" for name in again.trials}
    values = again.create_trial("one").hyperparameters.values
    assert values == trial.hyperparameters.values


def test_copy_of_a_trial_takes_nobodys_place(tmp_path):
    settings = config("random")
    run(tmp_path, settings)
    trial = read_json(tmp_path / "trials" / "trial_1" / "trial.json")
    write_json(tmp_path / "trials" / "trial_1 copy" / "trial.json", {**trial, "score": -1.0})
    assert oracle_in(tmp_path, settings).trials["1"].score == trial["score"]


@pytest.fixture
def searcher(phantom_archive, tmp_path):
    return Searcher(phantom_archive.path, tmp_path / "out", config("random"))


def fail(monkeypatch, error):
    def call(*words, log):
        raise error

    monkeypatch.setattr("tuning.tuner.call", call)


def test_disk_that_is_full_for_the_records_is_no_trials_fault(searcher, monkeypatch):
    trial = searcher.oracle.create_trial("one")
    monkeypatch.setattr("tuning.tuner.call", lambda *words, log: {searcher.config.objective: 0.5})

    def save(trial):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(searcher.oracle, "_save_trial", save)
    with pytest.raises(keras_tuner.errors.FatalRuntimeError, match="No space left"):
        searcher._run_and_update_trial(trial)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("loss is\nnot finite"), "loss is not finite"),
        (CallFailed("KeyError: 3"), "KeyError: 3"),
        (FileNotFoundError(errno.ENOENT, "gone", "x"), "FileNotFoundError: [Errno 2] gone: 'x'"),
    ],
    ids=["input", "call", "file"],
)
def test_failing_trial_leaves_its_reason(searcher, monkeypatch, error, reason):
    trial = searcher.oracle.create_trial("one")
    fail(monkeypatch, error)
    with pytest.raises(keras_tuner.errors.FailedTrialError, match=re.escape(reason)):
        searcher.run_trial(trial)
    (told,) = read_trials(searcher.out)
    path = searcher.out / "trials" / f"trial_{trial.trial_id}" / "failure.json"
    assert read_json(path) == {"reason": reason}
    assert told.status == "running"


def test_space_that_breaks_on_some_values_fails_their_trials(phantom_archive, tmp_path):
    space = tmp_path / "space.py"
    text = "from vqvae.config import DEFAULT\nWIDTHS = {16: 8}\n"
    text += "def space(hp):\n    WIDTHS[hp.Choice('num_embeddings', [16, 32])]\n"
    space.write_text(text + "    return DEFAULT.model, DEFAULT.training\n")
    settings = SearchConfig(space=str(space), tuner="random", trials=2)
    searcher = Searcher(phantom_archive.path, tmp_path / "out", settings)
    trials = [searcher.oracle.create_trial(name) for name in ("one", "two")]
    trial = next(each for each in trials if each.hyperparameters.values["num_embeddings"] == 32)
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="KeyError: 32"):
        searcher.run_trial(trial)


@pytest.mark.parametrize("fault", ["full disk", "no data"])
def test_machine_that_fails_is_no_failed_trial(searcher, monkeypatch, tmp_path, fault):
    trial = searcher.oracle.create_trial("one")
    if fault == "full disk":
        fail(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "state.npz"))
    else:
        fail(monkeypatch, InputError("is no slice archive"))
        searcher.data = tmp_path / "gone"
    with pytest.raises(keras_tuner.errors.FatalRuntimeError):
        searcher.run_trial(trial)
    assert not list(searcher.out.rglob("failure.json"))


def test_files_are_whole_and_failures_do_not_end_a_search(tmp_path):
    settings = config("random", trials=6)
    oracle = oracle_in(tmp_path, settings)
    for number in range(6):
        trial = oracle.create_trial("one")
        trial.status, trial.message = "FAILED", f"Error: reason {number}"
        oracle.end_trial(trial)
    assert oracle.create_trial("one").status == "STOPPED"
    files = list((tmp_path / "trials").rglob("*.json"))
    assert len(files) == 7
    assert all(json.loads(path.read_text()) for path in files)
    assert not list((tmp_path / "trials").rglob(".*"))


def test_score_that_is_no_number_is_a_failure(tmp_path):
    settings = config("random", trials=1)
    oracle = oracle_in(tmp_path, settings)
    trial = oracle.create_trial("one")
    oracle.update_trial(trial.trial_id, {settings.objective: float("nan")})
    trial.status = keras_tuner.engine.trial.TrialStatus.COMPLETED
    oracle.end_trial(trial)
    assert oracle_in(tmp_path, settings).trials[trial.trial_id].status == "FAILED"
