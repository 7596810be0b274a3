"""Trainings stopped repeatedly by signals at random moments, also during a write."""

import itertools
import json
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import (
    ROOT,
    assert_bit_equal,
    flags,
    python,
    start,
    tiny_config,
    tiny_prior_config,
    tiny_prior_training,
    tiny_training,
    values,
)

from brainslices.runs.json_files import read_json

# SIGKILL during a write and at any time; SIGTERM as a cluster sends it, SIGINT as Ctrl-C does.
STOPS = ("WRITE", "TERM", "KILL", "WRITE", "INT", "KILL")
# More epochs than a process finishes before it is stopped.
EPOCHS_PER_STOP = 6
MAX_DELAY_S = 0.7
STOP_TIMEOUT_S = 30


def commands(archive, linked, epochs):
    """Stage -> the command of a training whose epochs take a few tenths of a second."""
    prior, vqvae = linked
    short = {"epochs": epochs, "batch_size": 4}
    stage_one = [
        tiny_config(encoder_blocks=0, decoder_blocks=0),
        tiny_training(**short, mirror=True),
    ]
    stage_two = [
        tiny_prior_config(layers=1, attention_layers=1, first_kernel_size=3),
        tiny_prior_training(**short),
    ]
    return {
        "vqvae": ["train_vqvae.py", "--data", archive.path, *map_flags(stage_one)],
        "pixelcnn": ["train_pixelcnn.py", "--vqvae", vqvae.path, *map_flags(stage_two)],
    }


def map_flags(configs):
    return itertools.chain.from_iterable(flags(config) for config in configs)


def progress(run):
    """Epoch and step of a run's checkpoint; None without one."""
    if not (run / "state.npz").exists():
        return None
    with np.load(run / "state.npz") as file:
        saved = json.loads(file["progress"].item())
    return saved["epoch"], saved["step"]


def partial_files(run):
    """Files whose write has not finished, or never will because the process was killed."""
    return [*run.glob(".state*-????????.npz"), *run.glob(".model-????????.keras")]


def wait_for_write(process, run, old, deadline):
    """Return as soon as a file is being written."""
    while process.poll() is None and time.monotonic() < deadline:
        if any(item not in old for item in partial_files(run)):
            return
        time.sleep(0.0005)


def stop(process, run, kind, rng):
    """Stop a training some time after its first checkpoint: (seconds until its end, stderr)."""
    deadline, old, before = time.monotonic() + 200, partial_files(run), progress(run)
    while process.poll() is None and time.monotonic() < deadline and progress(run) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, MAX_DELAY_S))
    if kind == "WRITE":
        wait_for_write(process, run, old, deadline)
    process.send_signal(signal.SIGKILL if kind == "WRITE" else getattr(signal, f"SIG{kind}"))
    sent = time.monotonic()
    _, err = process.communicate(timeout=200)
    return time.monotonic() - sent, err


def assert_same_run(first, second):
    """Equal to the last bit: checkpoint, history, best model, metrics."""
    with np.load(first / "state.npz") as one, np.load(second / "state.npz") as other:
        assert one.files == other.files
        for key in set(one.files) - {"progress"}:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()
    models = [keras.saving.load_model(run / "model.keras") for run in (first, second)]
    assert_bit_equal(*(values(model.weights) for model in models))
    one, other = (read_json(run / "metrics.json") for run in (first, second))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "stops"),
    [
        ("vqvae", 1),
        pytest.param("vqvae", 12, marks=pytest.mark.long),
        pytest.param("pixelcnn", 12, marks=pytest.mark.long),
    ],
)
def test_training_stopped_repeatedly_equals_an_uninterrupted_one(
    stage, stops, phantom_archive, linked, tmp_path
):
    epochs = EPOCHS_PER_STOP * stops
    name, *arguments = commands(phantom_archive, linked, epochs)[stage]
    command = [Path(ROOT / "scripts" / name), *arguments]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ran = python(*command, "--run", whole, timeout=500)
    assert ran.returncode == 0, ran.stderr

    rng, torn_writes = np.random.default_rng(0), 0
    for number in range(stops):
        kind = STOPS[number % len(STOPS)]
        process = start(*command, "--run", cut)
        seconds, err = stop(process, cut, kind, rng)
        assert "Traceback" not in err
        assert progress(cut)[0] < epochs, "the training ended before it was stopped"
        if kind in ("TERM", "INT"):
            assert process.returncode == 130, err
            assert f"stopped. Checkpoint saved in {cut} after epoch" in err
            assert seconds < STOP_TIMEOUT_S
            assert not partial_files(cut)
        else:
            assert process.returncode == -signal.SIGKILL, err
            torn_writes += len(partial_files(cut)) > 0
    assert torn_writes or len(STOPS) > stops, "no kill hit a write"
    ran = python(*command, "--run", cut, timeout=500)
    assert ran.returncode == 0, ran.stderr
    assert not partial_files(cut)
    assert_same_run(whole, cut)
