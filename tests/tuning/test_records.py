import dataclasses
import os
import shutil

import pytest
from fake_trials import TRIALS, write_oracle, write_trial

import tuning.records
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from tuning.config import METRICS
from tuning.records import best_trial, check_records, current_epoch, finished_trials, read_trials


@pytest.fixture
def out(tmp_path):
    for trial in TRIALS:
        write_trial(tmp_path, trial)
    return tmp_path


def test_trials_are_read_as_written(out):
    trials = read_trials(out)
    assert trials == TRIALS
    assert list(trials[0].metrics) == [name for name in METRICS if name in trials[0].metrics]
    assert list(trials[0].values) == ["num_embeddings", "downsampling"]


@pytest.mark.parametrize("status", ["RUNNING", "INVALID"])
def test_running_trial_and_one_that_waits_for_its_retry_have_no_result(out, status):
    write_trial(out, dataclasses.replace(TRIALS[0], name="9"), status=status)
    trials = read_trials(out)
    assert (trials[-1].status, trials[-1].score, trials[-1].metrics) == ("running", None, {})
    assert trials[-1].reason == ""
    assert finished_trials(trials) == TRIALS


def test_failure_without_a_reason_points_to_the_logs(out):
    (out / "trials" / "trial_4" / "failure.json").unlink()
    assert "logs/" in read_trials(out)[4].reason


@pytest.mark.parametrize(
    "changes",
    [
        {"start_order": 3},
        {"end_order": [0.5]},
        {"seed": "x"},
        {"hyperparameters": {"space": 3}},
        {"ongoing_trials": {"tuner0": "99"}},
        {"display": []},
        {"start_order": ["0"]},  # keras-tuner would remove the other trials
    ],
)
def test_corrupt_state_of_keras_tuner_is_refused(out, changes):
    check_records(out)
    write_oracle(out, TRIALS)
    check_records(out)
    write_oracle(out, TRIALS, **changes)
    with pytest.raises(InputError, match="oracle.json"):
        check_records(out)


def test_missing_trial_is_named(out):
    write_oracle(out, [TRIALS[0], dataclasses.replace(TRIALS[1], name="7")])
    with pytest.raises(InputError, match="trial.json of trial 7"):
        check_records(out)


def test_trial_that_keras_tuner_cannot_load_is_named(out):
    write_oracle(out, TRIALS)
    path = out / "trials" / "trial_1" / "trial.json"
    state = read_json(path)
    state["hyperparameters"]["space"][0]["class_name"] = "Unknown"
    write_json(path, state)
    with pytest.raises(InputError, match="trial_1/trial.json"):
        check_records(out)


def test_corrupt_trial_is_named_and_a_copied_folder_ignored(out):
    path = out / "trials" / "trial_1" / "trial.json"
    shutil.copytree(path.parent, out / "trials" / "trial_1 copy")
    assert read_trials(out) == TRIALS
    path.write_text("{}")
    with pytest.raises(InputError, match="trial_1/trial.json"):
        read_trials(out)


def test_trial_removed_while_it_is_read_is_left_out(out, monkeypatch):
    removed = out / "trials" / "trial_1" / "trial.json"
    read_json = tuning.records.read_json

    def read_late(path, *rules, **options):
        if path == removed:
            removed.unlink()
        return read_json(path, *rules, **options)

    monkeypatch.setattr(tuning.records, "read_json", read_late)
    assert read_trials(out) == [trial for trial in TRIALS if trial.name != "1"]


def test_best_trial_is_the_first_of_the_best_completed():
    assert best_trial(TRIALS, "min") is TRIALS[1]
    assert best_trial(TRIALS, "max") is TRIALS[0]
    assert best_trial(TRIALS[-1:], "min") is None


def test_current_epoch_is_that_of_the_stage_written_last(tmp_path):
    """With hyperband the VQ-VAE is trained further while the prior of its old codes exists."""
    assert current_epoch(tmp_path) == "starting"
    steps = (("vqvae", 2, "vqvae, epoch 2"), ("prior-1", 1, "prior, epoch 1"))
    for seconds, (name, rows, text) in enumerate((*steps, ("vqvae", 3, "vqvae, epoch 3"))):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "history.csv").write_text("epoch\n" + "1\n" * rows)
        os.utime(tmp_path / name / "history.csv", (seconds, seconds))
        assert current_epoch(tmp_path) == text
