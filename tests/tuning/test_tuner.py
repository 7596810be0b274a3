"""The oracles and the tuner, without any training: scores and failures are made up."""

import errno
import json
import re

import keras_tuner
import numpy as np
import pytest
from oracle_runs import (
    TUNERS,
    fake_score,
    open_oracle,
    run_oracle,
    search_config,
    short_optimization,  # noqa: F401
)

import tuning.tuner
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from tuning.config import SearchConfig
from tuning.records import finished_trials, read_trials
from tuning.tuner import Searcher
from tuning.workers import CallFailed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


@pytest.mark.slow
@pytest.mark.usefixtures("short_optimization")
@pytest.mark.parametrize("tuner", TUNERS)
def test_search_reloaded_after_every_step_equals_an_undisturbed_one(tmp_path, tuner):
    config = search_config(tuner)
    undisturbed = run_oracle(tmp_path / "a", config)
    assert len(undisturbed) == 8
    reloaded = run_oracle(tmp_path / "b", config, lambda *_: open_oracle(tmp_path / "b", config))
    assert reloaded == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("short_optimization")
@pytest.mark.parametrize("tuner", TUNERS)
def test_trial_that_the_oracle_does_not_know_is_created_again(tmp_path, tuner):
    """Killed between writing a trial's file and the oracle's."""
    config, path = search_config(tuner), tmp_path / "b" / "trials" / "oracle.json"
    before = {}

    def disturb(moment, oracle):
        if moment == "created" and before:
            path.write_bytes(before["state"])
            return open_oracle(tmp_path / "b", config)
        before["state"] = path.read_bytes()
        return oracle

    assert run_oracle(tmp_path / "b", config, disturb) == run_oracle(tmp_path / "a", config)


@pytest.mark.usefixtures("short_optimization")
@pytest.mark.parametrize("tuner", TUNERS)
def test_seed_decides_even_if_it_is_zero(tmp_path, tuner):
    first = run_oracle(tmp_path / "a", search_config(tuner, trials=4))
    assert run_oracle(tmp_path / "b", search_config(tuner, trials=4)) == first
    assert run_oracle(tmp_path / "c", search_config(tuner, trials=4, seed=1)) != first


@pytest.mark.long
@pytest.mark.slow
def test_bayesian_search_improves_on_its_random_trials(tmp_path):
    tried = run_oracle(tmp_path, search_config("bayesian", trials=14))
    scores = [fake_score(values) for values in tried]
    assert min(scores[7:]) < min(scores[:6])


def test_hyperband_trains_better_configurations_longer(tmp_path):
    tried = run_oracle(tmp_path, search_config("hyperband", trials=30))
    promoted = [values for values in tried if values.get("tuner/trial_id") is not None]
    first = [fake_score(values) for values in tried if values["tuner/round"] == 0]
    assert any(values["tuner/epochs"] < 9 for values in tried)
    assert np.mean([fake_score(values) for values in promoted]) < np.mean(first)


def test_more_trials_resume_a_finished_search(tmp_path):
    undisturbed = run_oracle(tmp_path / "a", search_config("random"))
    assert run_oracle(tmp_path / "b", search_config("random", trials=5)) == undisturbed[:5]
    assert run_oracle(tmp_path / "b", search_config("random")) == undisturbed[5:]


def test_failures_do_not_end_a_search(tmp_path):
    oracle = open_oracle(tmp_path, search_config("random", trials=6))
    for _ in range(6):
        trial = oracle.create_trial("one")
        trial.status = "FAILED"
        oracle.end_trial(trial)
    assert oracle.create_trial("one").status == "STOPPED"
    files = list((tmp_path / "trials").rglob("*.json"))
    assert len(files) == 7
    assert all(json.loads(path.read_text()) for path in files)
    assert not list((tmp_path / "trials").rglob(".*"))


def make_searcher(data, out, monkeypatch, outcome, **changes):
    """A searcher whose trials return or raise what `outcome(values)` does."""

    def call(function, data, out, config, values, *, log):
        return {config.objective: outcome(values)}

    monkeypatch.setattr(tuning.tuner, "call", call)
    monkeypatch.setattr(tuning.tuner, "REQUEST_INTERVAL_S", 0)
    return Searcher(data, out, search_config(**{"tuner": "random", **changes}))


@pytest.mark.usefixtures("short_optimization")
@pytest.mark.parametrize("tuner", TUNERS)
def test_killed_trial_is_retried_and_the_search_stays_the_same(
    phantom_archive, tmp_path, monkeypatch, tuner
):
    def search(folder, kills):
        runs = []

        def outcome(values):
            runs.append(values)
            if len(runs) in kills:
                raise CallFailed("its process was killed by SIGKILL", is_killed=True)
            return fake_score(values)

        out = tmp_path / folder
        make_searcher(phantom_archive.path, out, monkeypatch, outcome, tuner=tuner).search()
        return len(runs), read_trials(out)

    (runs, trials), (runs_with_kills, trials_with_kills) = search("a", ()), search("b", {2, 3, 6})
    assert (runs, runs_with_kills) == (8, 11)
    assert trials_with_kills == trials
    assert {trial.status for trial in trials} == {"completed"}


def test_trial_killed_again_and_again_fails_with_its_reason(phantom_archive, tmp_path, monkeypatch):
    runs = []

    def outcome(values):
        runs.append(values)
        raise CallFailed("its process was killed by SIGKILL", is_killed=True)

    make_searcher(phantom_archive.path, tmp_path, monkeypatch, outcome, trials=1).search()
    (trial,) = read_trials(tmp_path)
    assert (trial.status, trial.reason) == ("failed", "its process was killed by SIGKILL")
    assert len(runs) == 3


def test_trial_that_waits_for_its_retry_is_not_finished(phantom_archive, tmp_path, monkeypatch):
    def outcome(values):
        (trial,) = read_trials(tmp_path)
        assert (trial.status, finished_trials([trial])) == ("running", [])
        raise CallFailed("its process was killed by SIGKILL", is_killed=True)

    make_searcher(phantom_archive.path, tmp_path, monkeypatch, outcome, trials=1).search()
    assert len(finished_trials(read_trials(tmp_path))) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("loss is\nnot finite"), "loss is not finite"),
        (CallFailed("KeyError: 3"), "KeyError: 3"),
        (FileNotFoundError(errno.ENOENT, "gone", "x"), "FileNotFoundError: [Errno 2] gone: 'x'"),
    ],
    ids=["input", "call", "file"],
)
def test_failed_trial_leaves_its_reason_and_is_not_retried(
    phantom_archive, tmp_path, monkeypatch, error, reason
):
    runs = []

    def outcome(values):
        runs.append(values)
        raise error

    make_searcher(phantom_archive.path, tmp_path, monkeypatch, outcome, trials=1).search()
    (trial,) = read_trials(tmp_path)
    assert (trial.status, trial.reason, len(runs)) == ("failed", reason, 1)
    assert read_json(tmp_path / "trials" / "trial_0" / "failure.json") == {"reason": reason}


@pytest.mark.parametrize("fault", ["full disk", "no data"])
def test_fault_of_the_machine_fails_no_trial(phantom_archive, tmp_path, monkeypatch, fault):
    def outcome(values):
        if fault == "full disk":
            raise OSError(errno.ENOSPC, "No space left on device", "state.npz")
        searcher.data = tmp_path / "gone"
        raise InputError("is no slice archive")

    searcher = make_searcher(phantom_archive.path, tmp_path, monkeypatch, outcome)
    with pytest.raises(keras_tuner.errors.FatalRuntimeError):
        searcher.search()
    assert not list(tmp_path.rglob("failure.json"))
    assert [trial.status for trial in read_trials(tmp_path)] == ["running"]


def test_space_that_fails_for_some_values_fails_their_trials(phantom_archive, tmp_path):
    path = tmp_path / "space.py"
    text = "from vqvae.config import DEFAULT\nWIDTHS = {16: 8}\n"
    text += "def space(hp):\n    WIDTHS[hp.Choice('num_embeddings', [16, 32])]\n"
    path.write_text(text + "    return DEFAULT.model, DEFAULT.training\n")
    config = SearchConfig(space=str(path), tuner="random", trials=2)
    searcher = Searcher(phantom_archive.path, tmp_path / "out", config)
    trials = [searcher.oracle.create_trial(name) for name in ("one", "two")]
    trial = next(one for one in trials if one.hyperparameters.values["num_embeddings"] == 32)
    with pytest.raises(keras_tuner.errors.FailedTrialError, match=re.escape("KeyError: 32")):
        searcher.run_trial(trial)


def test_nan_score_is_a_failure(tmp_path):
    config = search_config("random", trials=1)
    oracle = open_oracle(tmp_path, config)
    for _ in range(3):
        trial = oracle.create_trial("one")
        oracle.update_trial(trial.trial_id, {config.objective: float("nan")})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert open_oracle(tmp_path, config).trials["0"].status == "FAILED"
