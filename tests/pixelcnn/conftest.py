"""Fixtures: a prior trained on Markov chains."""

import shutil

import numpy as np
import pytest
from helpers import values
from prior_training import CODES, CONFIG, GRID, SUBJECTS, TRAINING, sample_chains, sample_split
from training_runs import ON_STEP

from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run
from brainslices.training.callbacks import StopCallback
from pixelcnn.training import train


@pytest.fixture(scope="module")
def grids():
    """Code grids without a VQ-VAE: 40 train, 16 validate, 8 test."""
    counts = {"train": 40, "validate": 16, "test": 8}
    return CodeGrids(
        splits={
            name: sample_split(count, seed) for seed, (name, count) in enumerate(counts.items())
        },
        variants=np.stack([sample_chains(40, 3), sample_chains(40, 4)]),
        num_embeddings=CODES,
        grid_shape=GRID,
        image_shape=(64, 60),
        vqvae_hash="a" * 64,
        vqvae_run="/runs/gone",
        archive_hash="c" * 64,
    )


@pytest.fixture(scope="module")
def recorded_training(grids, make_once):
    """A run of three epochs, the metrics that `train` returned, and the weights after each step."""

    def make(path):
        weights = {}

        def record_weights(self, batch, logs=None):
            for number, value in enumerate(values(self.model.trainable_variables)):
                weights.setdefault(str(number), []).append(value)
            ON_STEP(self, batch, logs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopCallback, "on_train_batch_end", record_weights)
            metrics = train(grids, path / "trained", CONFIG, TRAINING, SUBJECTS)
        write_json(path / "returned.json", metrics)
        np.savez(path / "weights.npz", **weights)

    path = make_once("trained_on_chains", make)
    with np.load(path / "weights.npz") as saved:
        weights = list(zip(*saved.values(), strict=True))
    return path / "trained", read_json(path / "returned.json"), weights


@pytest.fixture(scope="module")
def trained_run(recorded_training):
    """That run and its metrics; tests that change it work on copies."""
    return recorded_training[:2]


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of that run, for a test to change."""
    return Run(shutil.copytree(trained_run[0], tmp_path / "run"))
