"""Trainings ended again and again at moments drawn by chance, by signals, also within a write."""

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

# SIGKILL within a write and at any time; SIGTERM as a cluster sends it, SIGINT as Ctrl-C does.
KINDS = ("WRITE", "TERM", "KILL", "WRITE", "INT", "KILL")
# Longer than the training that all moments together leave time for.
EPOCHS_AN_END = 12
LATEST_S = 0.7
PATIENCE_S = 30


def commands(archive, linked, epochs):
    """Name -> the words of a training; each epoch is some tenths of a second."""
    prior, vqvae = linked
    short = {"epochs": epochs, "batch_size": 4}
    stage_one = [tiny_config(), tiny_training(**short, mirror=True)]
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
    """Epochs and steps that a run's state tells of; None before there is one."""
    if not (run / "state.npz").exists():
        return None
    with np.load(run / "state.npz") as file:
        told = json.loads(file["progress"].item())
    return told["epoch"], told["step"]


def halves(run):
    """Files that are being written, or were when their process was killed."""
    return [*run.glob(".state*-????????.npz"), *run.glob(".model-????????.keras")]


def await_writing(process, run, old, deadline):
    """Return at once when a file is begun."""
    while process.poll() is None and time.monotonic() < deadline:
        if any(item not in old for item in halves(run)):
            return


def end(process, run, kind, chance):
    """End a training in the way asked for, some time after it has begun to write."""
    deadline, old, before = time.monotonic() + 200, halves(run), progress(run)
    while process.poll() is None and time.monotonic() < deadline and progress(run) == before:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, LATEST_S))
    if kind == "WRITE":
        await_writing(process, run, old, deadline)
    process.send_signal(signal.SIGKILL if kind == "WRITE" else getattr(signal, f"SIG{kind}"))
    sent = time.monotonic()
    out, err = process.communicate(timeout=200)
    return time.monotonic() - sent, err


def assert_same_run(first, second):
    """Equal to the last bit: weights, optimiser, generators, history, best model, metrics."""
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
    ("stage", "ends"),
    [
        ("vqvae", 2),
        pytest.param("vqvae", 12, marks=pytest.mark.long),
        pytest.param("pixelcnn", 12, marks=pytest.mark.long),
    ],
)
def test_training_ended_again_and_again_is_the_undisturbed_one(
    stage, ends, phantom_archive, linked, tmp_path
):
    epochs = EPOCHS_AN_END * ends
    name, *words = commands(phantom_archive, linked, epochs)[stage]
    command = [Path(ROOT / "scripts" / name), *words]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ran = python(*command, "--run", whole, timeout=500)
    assert ran.returncode == 0, ran.stderr

    chance, torn = np.random.default_rng(), 0
    for number in range(ends):
        kind = KINDS[number % len(KINDS)]
        process = start(*command, "--run", cut)
        seconds, err = end(process, cut, kind, chance)
        assert "Traceback" not in err
        assert progress(cut)[0] < epochs, "all moments must lie within the training"
        if kind in ("TERM", "INT"):
            assert process.returncode == 130, err
            assert f"stopped. State saved in {cut} after epoch" in err
            assert seconds < PATIENCE_S
            assert not halves(cut)
        else:
            assert process.returncode == -signal.SIGKILL, err
            torn += len(halves(cut)) > 0
    assert torn or len(KINDS) > ends, "no kill fell within a write"
    ran = python(*command, "--run", cut, timeout=500)
    assert ran.returncode == 0, ran.stderr
    assert not halves(cut)
    assert_same_run(whole, cut)
