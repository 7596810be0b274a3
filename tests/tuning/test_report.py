import shutil

import numpy as np
import pytest
from PIL import Image

import tuning.records
from brainslices.errors import InputError
from brainslices.runs.json_files import load_config, write_json
from tuning.config import SearchConfig
from tuning.records import (
    TrialRecord,
    best,
    check_records,
    epochs_done,
    finished,
    read_trials,
)
from tuning.report import _history, best_of_each_size, describe_best, pareto_front, write_report
from tuning.trial import folder_of
from vqvae.config import VQVAEConfig, VQVAETraining

CONFIG = SearchConfig(rate_weight=2.0, trials=5)
# Codebook size, ssim_foreground and bits per pixel of made-up trials; the last one failed.
FOUND = [(64, 0.70, 0.03), (512, 0.85, 0.05), (512, 0.84, 0.06), (2048, 0.87, 0.09), (16, None, 0)]


def record(number, size, ssim, rate):
    values = {"num_embeddings": size, "downsampling": 8 if number % 2 else 4}
    if ssim is None:
        return TrialRecord(f"{number}", "failed", values, {}, None, "loss is not finite")
    score = 1 - ssim + 2 * rate
    metrics = {"val_rate_distortion": score, "val_ssim_foreground": ssim}
    metrics["bits_per_pixel_prior"] = rate
    return TrialRecord(f"{number}", "completed", values, metrics, score, "")


TRIALS = [record(number, *each) for number, each in enumerate(FOUND)]


def as_keras_tuner(trial):
    """What keras-tuner would have written."""
    metrics = {
        name: {"direction": "min", "observations": [{"value": [value], "step": 0}]}
        for name, value in trial.metrics.items()
    }
    return {
        "trial_id": trial.name,
        "hyperparameters": {
            "space": [{"config": {"name": name}} for name in trial.values],
            "values": {**trial.values, "tuner/epochs": 3},
        },
        "metrics": {"metrics": metrics},
        "score": trial.score,
        "best_step": 0,
        "status": trial.status.upper(),
        "message": trial.reason and f"Traceback ...\n  File ...\nError: {trial.reason}\n",
    }


@pytest.fixture
def out(tmp_path):
    for trial in TRIALS:
        path = tmp_path / "trials" / f"trial_{trial.name}" / "trial.json"
        write_json(path, as_keras_tuner(trial))
    return tmp_path


@pytest.mark.parametrize("text", ["{}", "[]", '{"start_order": 3}'])
def test_damaged_state_of_keras_tuner_is_refused(out, text):
    path = out / "trials" / "oracle.json"
    check_records(out)
    write_json(path, {"start_order": [trial.name for trial in TRIALS]})
    check_records(out)
    path.write_text(text)
    with pytest.raises(InputError, match="oracle.json (is damaged|must hold)"):
        check_records(out)


def test_trial_that_is_lost_is_told(out):
    write_json(out / "trials" / "oracle.json", {"start_order": ["0", "7"]})
    with pytest.raises(InputError, match="has lost trial.json of trial 7"):
        check_records(out)


def test_trial_that_is_damaged_is_told_and_a_copy_is_none(out):
    path = out / "trials" / "trial_1" / "trial.json"
    shutil.copytree(path.parent, out / "trials" / "trial_1 copy")
    assert [trial.name for trial in read_trials(out)] == [trial.name for trial in TRIALS]
    path.write_text("{}")
    with pytest.raises(InputError, match="trial_1/trial.json is damaged"):
        read_trials(out)


def test_trial_that_goes_while_it_is_read_is_left_out(out, monkeypatch):
    gone = out / "trials" / "trial_1" / "trial.json"
    read = tuning.records.read_json

    def read_late(path):
        if path == gone:
            gone.unlink()
        return read(path)

    monkeypatch.setattr(tuning.records, "read_json", read_late)
    names = [trial.name for trial in TRIALS if trial.name != "1"]
    assert [trial.name for trial in read_trials(out)] == names


def test_learning_curve_that_is_damaged_is_left_out(tmp_path):
    path = tmp_path / "vqvae" / "history.csv"
    path.parent.mkdir()
    path.write_text("epoch,loss\n1,0.5\n2,0.25\n")
    assert _history(tmp_path, "vqvae", "loss") == [0.5, 0.25]
    for damaged in (b"epoch,loss\n1,0.5\n2", b"\xff\xfe\x00", b""):
        path.write_bytes(damaged)
        assert _history(tmp_path, "vqvae", "loss") == []


def test_front_is_all_that_nothing_beats():
    draw = np.random.default_rng(0)
    for count in (1, 2, 30):
        rates, scores = draw.integers(0, 6, (2, count)) / 5
        front = pareto_front(rates, scores)
        for row in range(count):
            better = (rates <= rates[row]) & (scores >= scores[row])
            better &= (rates < rates[row]) | (scores > scores[row])
            beaten = better.any()
            told = [(rates[each], scores[each]) for each in front]
            assert beaten != ((rates[row], scores[row]) in told)
        assert (np.diff(rates[front]) > 0).all()
        assert (np.diff(scores[front]) > 0).all()


def test_trials_are_read_as_they_were_written(out):
    assert read_trials(out) == TRIALS
    write_json(
        out / "trials" / "trial_9" / "trial.json",
        {**as_keras_tuner(TRIALS[0]), "trial_id": "9", "status": "RUNNING"},
    )
    trials = read_trials(out)
    assert (trials[-1].status, trials[-1].score, trials[-1].metrics) == ("running", None, {})
    assert finished(trials) == TRIALS


def test_best_is_the_first_of_the_best_completed():
    assert best(TRIALS, "min") is TRIALS[1]
    assert best(TRIALS, "max") is TRIALS[0]
    assert best(TRIALS[-1:], "min") is None
    sizes = [size for size, *_ in FOUND[:-1]]
    of_size = best_of_each_size(TRIALS[:-1], sizes, "min")
    assert of_size == {64: TRIALS[0], 512: TRIALS[1], 2048: TRIALS[3]}


def test_sentence_names_the_size_and_its_neighbours():
    words = describe_best(TRIALS[:-1], [size for size, *_ in FOUND[:-1]], CONFIG)
    assert words.startswith("A codebook of 512 codes (downsampling 8) is best by val_rate_")
    assert "ssim_foreground 0.8500 at 0.0500 bits per pixel under the prior" in words
    assert "With 64 codes: ssim_foreground 0.7000" in words
    assert "With 2048 codes: ssim_foreground 0.8700" in words
    assert "A bit per pixel was weighed as 2 of ssim_foreground." in words


def test_report_has_table_configuration_and_figures(out):
    words = write_report(out, CONFIG)
    assert words.startswith("4 trials completed, 1 failed. A codebook of 512 codes")
    lines = (out / "trials.csv").read_text().splitlines()
    assert lines[0].startswith("trial,status,score,num_embeddings,downsampling,val_rate_distortion")
    assert lines[-1].endswith(",loss is not finite")
    assert folder_of(out, CONFIG, TRIALS[1].values).name in lines[2]
    model, training = load_config(out / "best_config.json", VQVAEConfig, VQVAETraining)
    assert (model.num_embeddings, model.downsampling) == (512, 8)
    assert training.epochs > 20  # as it is trained in full
    for name in ("codebook", "rate_distortion"):
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300


def test_search_of_failures_alone_is_an_error(out):
    for trial in TRIALS[:-1]:
        path = out / "trials" / f"trial_{trial.name}"
        (path / "trial.json").unlink()
    with pytest.raises(InputError, match="All 1 trials .* failed: loss is not finite"):
        write_report(out, CONFIG)
    assert (out / "trials.csv").exists()


def test_progress_of_a_trial_in_words(tmp_path):
    assert epochs_done(tmp_path) == "starting"
    for name, rows, said in (("vqvae", 2, "vqvae, epoch 2"), ("prior-1", 1, "prior, epoch 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.csv").write_text("epoch\n" + "1\n" * rows)
        assert epochs_done(tmp_path) == said
