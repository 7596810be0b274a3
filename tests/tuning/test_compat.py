"""Every hook into private names of keras-tuner: an upgrade that changes one must fail here."""

import json

import grpc
import keras_tuner
import numpy as np
import pytest
from keras_tuner.src import utils
from keras_tuner.src.distribute import oracle_client
from oracle_runs import (
    TUNERS,
    complete_trial,
    open_oracle,
    run_oracle,
    search_config,
    short_optimization,  # noqa: F401
)

import tuning.compat
from brainslices.runs.json_files import read_json, write_json
from tuning.compat import CrashSafeTuner, set_client_timeout
from tuning.tuner import make_oracle

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*"),
    pytest.mark.usefixtures("short_optimization"),
]
SMALL = {"space": "codebook", "fix": (), "trials": 20}


class OneTrialTuner(CrashSafeTuner):
    """Completes each trial by a function."""

    def run_trial(self, trial):
        return self.score(trial)


def make_tuner(folder, config, score=lambda trial: 0.5):
    tuner = OneTrialTuner(make_oracle(config), directory=str(folder), project_name="trials")
    tuner.score = lambda trial: {config.objective: score(trial)}
    return tuner


def test_keras_tuner_writes_no_file_by_itself(tmp_path, monkeypatch):
    """`_get_oracle_fname`, `_save_trial`, `_get_trial_dir`, `_get_tuner_fname`."""

    def write(*arguments):
        raise AssertionError("not atomic")

    monkeypatch.setattr(utils, "save_json", write)
    make_tuner(tmp_path, search_config("random", trials=2)).search()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"trials/{name}.json" for name in ("oracle", "trial_0/trial", "trial_1/trial")}


def test_new_tuner_resumes_the_oracle_of_its_folder(tmp_path):
    """`_get_tuner_fname`."""
    make_tuner(tmp_path, search_config("random", trials=2)).search()
    assert list(make_tuner(tmp_path, search_config("random", trials=3)).oracle.trials) == ["0", "1"]


def test_worker_leaves_the_files_to_its_chief(tmp_path, monkeypatch):
    """`_is_worker`, the oracle client's TIMEOUT."""
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "9")
    monkeypatch.setattr(oracle_client, "TIMEOUT", oracle_client.TIMEOUT)
    tuner = make_tuner(tmp_path, search_config("random"))
    tuner.save()
    tuner.reload()
    assert not list(tmp_path.rglob("*.json"))
    set_client_timeout(0.2)
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED|Deadline"):
        tuner.search()


@pytest.mark.parametrize("error", [OSError("No space left"), grpc.RpcError()], ids=["disk", "rpc"])
def test_fault_of_disk_or_chief_fails_no_trial(tmp_path, monkeypatch, error):
    """`_run_and_update_trial`."""
    tuner = make_tuner(tmp_path, search_config("random", trials=1))
    monkeypatch.setattr(grpc.RpcError, "code", lambda self: grpc.StatusCode.UNAVAILABLE, False)

    def save(trial):
        if trial.metrics.exists("val_rate_distortion"):
            raise error

    monkeypatch.setattr(tuner.oracle, "_save_trial", save)
    with pytest.raises(keras_tuner.errors.FatalRuntimeError, match="No space left|UNAVAILABLE"):
        tuner.search()
    assert read_json(tmp_path / "trials" / "oracle.json")["end_order"] == []


@pytest.mark.parametrize("tuner", TUNERS)
def test_reloaded_oracle_repeats_running_trials_once_and_no_ended_ones(tmp_path, tuner):
    """`_retry_queue`; killed between the end of a trial and the end of its record as running."""
    config = search_config(tuner)
    oracle = open_oracle(tmp_path, config)
    first, second, third = (oracle.create_trial(name) for name in ("one", "two", "three"))
    complete_trial(oracle, first, config.objective, 0.5)
    second.status = "INVALID"  # waits for its retry
    oracle.end_trial(second)
    state = read_json(tmp_path / "trials" / "oracle.json")
    names = {"one": first.trial_id, "two": second.trial_id, "three": third.trial_id}
    write_json(tmp_path / "trials" / "oracle.json", {**state, "ongoing_trials": names})
    reloaded = open_oracle(tmp_path, config)
    assert sorted(reloaded._retry_queue) == [second.trial_id, third.trial_id]
    repeated = {reloaded.create_trial(name).trial_id for name in ("one", "two", "three")}
    assert repeated >= {second.trial_id, third.trial_id}
    assert first.trial_id not in repeated


def test_trial_unknown_to_the_oracle_is_removed_and_created_again(tmp_path):
    """Killed while it was created; the number of a larger search has more digits."""
    oracle = open_oracle(tmp_path, search_config("random", trials=10))
    for _ in range(2):
        state = json.loads(json.dumps(oracle.get_state()))
        trial = oracle.create_trial("one")
        oracle.ongoing_trials.clear()
    write_json(tmp_path / "trials" / "oracle.json", state)
    reloaded = open_oracle(tmp_path, search_config("random", trials=100))
    folders = {path.name for path in (tmp_path / "trials").glob("trial_*")}
    assert folders == {"trial_00"} == {f"trial_{name}" for name in reloaded.trials}
    values = reloaded.create_trial("one").hyperparameters.values
    assert values == trial.hyperparameters.values


def test_copied_folder_of_a_trial_is_ignored(tmp_path):
    config = search_config("random", trials=2)
    run_oracle(tmp_path, config)
    trial = read_json(tmp_path / "trials" / "trial_1" / "trial.json")
    write_json(tmp_path / "trials" / "trial_1 copy" / "trial.json", {**trial, "score": -1.0})
    assert open_oracle(tmp_path, config).trials["1"].score == trial["score"]


@pytest.fixture
def bayesian(tmp_path):
    """An oracle whose next trial comes from its model."""
    config = search_config("bayesian", **SMALL)
    oracle = open_oracle(tmp_path, config)
    for number in range(5):
        complete_trial(oracle, oracle.create_trial("one"), config.objective, number / 10)
        oracle.num_initial_points = 5
    return oracle


def test_random_restarts_depend_on_seed_and_trial_alone(bayesian):
    """`_random_state`."""
    bayesian._random_state.uniform(size=100)
    bayesian.populate_space("5")
    used = bayesian._random_state.get_state()[1:3]
    fresh = np.random.RandomState([bayesian.seed, 5]).get_state()[1:3]
    assert not all(np.array_equal(one, other) for one, other in zip(used, fresh, strict=True))
    bayesian._random_state.uniform(size=100)
    bayesian.populate_space("5")
    repeated = bayesian._random_state.get_state()[1:3]
    assert all(np.array_equal(one, other) for one, other in zip(used, repeated, strict=True))


def test_tried_configuration_is_replaced_by_a_random_one(bayesian, monkeypatch):
    """`_duplicate`, `_random_populate_space`."""
    tried = bayesian.trials["00"].hyperparameters.values
    response = {"status": "RUNNING", "values": tried}
    upstream = keras_tuner.oracles.BayesianOptimizationOracle
    monkeypatch.setattr(upstream, "populate_space", lambda self, trial_id: response)
    replaced = bayesian.populate_space("5")
    assert replaced["status"] == "RUNNING"
    assert replaced["values"] not in [
        one.hyperparameters.values for one in bayesian.trials.values()
    ]


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_small_space_is_tried_completely_and_nothing_twice(tmp_path, tuner, monkeypatch):
    """`_max_collisions`."""
    config, tried = search_config(tuner, **SMALL), set()
    oracle = open_oracle(tmp_path, config)
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        values = trial.hyperparameters.values
        tried.add(tuple(values.items()))
        complete_trial(oracle, trial, config.objective, values["num_embeddings"] / 1000)
    assert len(tried) == len(oracle.trials) == 18
    draws = []
    monkeypatch.setattr(oracle, "_duplicate", lambda values: draws.append(values) or True)
    assert oracle.create_trial("one").status == "STOPPED"
    assert len(draws) > tuning.compat.MAX_COLLISIONS
