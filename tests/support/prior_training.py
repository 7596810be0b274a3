"""A tiny prior and Markov chains as code grids to train it on, without a VQ-VAE."""

import dataclasses

import numpy as np
from helpers import assert_bit_equal, csv_rows, tiny_prior_config, tiny_prior_training, values
from training_runs import saved_arrays

from brainslices.data.code_grids import SplitCodes
from brainslices.runs.run import Run
from pixelcnn.conditions import Variable
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.training import train

GRID, CODES = (4, 5), 8
CONFIG = tiny_prior_config(first_kernel_size=3, attention_layers=1, conditions=("age",))
TRAINING = tiny_prior_training(epochs=3, learning_rate=0.05, average=0.8, variants=2)

# Training subjects are 0_0 to 0_39; every fourth age is unknown.
SUBJECTS = {
    f"{seed}_{number}": {"age": str(40 + number) if number % 4 else ""}
    for seed in range(3)
    for number in range(40)
}
VARIABLES = (Variable("age", 41, 79),)


def sample_chains(count, seed):
    """Predictable grids: with probability 0.9 a code is its left neighbour plus one."""
    rng = np.random.default_rng(seed)
    steps = 1 + (rng.random((count, *GRID)) < 0.1)
    steps[..., 0] = rng.integers(0, CODES, (count, GRID[0]))
    return (np.cumsum(steps, axis=2) % CODES).astype("uint16")


def sample_split(count, seed):
    """A split of such grids, one a subject."""
    names = np.array([f"{seed}_{number}" for number in range(count)])
    positions = np.linspace(0.1, 0.9, count, dtype="float32")
    return SplitCodes(sample_chains(count, seed), names, names, positions)


def train_or_resume(run, grids, config=CONFIG, **changes):
    """Train in a run folder with changes of `TRAINING`; return the metrics."""
    return train(grids, run.path, config, dataclasses.replace(TRAINING, **changes), SUBJECTS)


def read_history(path):
    """Columns of a run's history by name."""
    rows = csv_rows(path / "history.csv")
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def assert_same_training(first, second):
    """Checkpoint, history and model of two runs are bit-identical."""
    one, other = saved_arrays(Run(first)), saved_arrays(Run(second))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
    assert read_history(first) == read_history(second)
    models = [PixelCNN.from_run(path) for path in (first, second)]
    assert_bit_equal(*(values(model.weights) for model in models))


def sample_codes(path, prefix):
    """Sample codes and log-probabilities from a run's prior: arrays by name."""
    model = PixelCNN.from_run(path)
    inputs = model.with_conditions(np.linspace(0.1, 0.9, 6, dtype="float32"), {"age": 60})
    sampled = Sampler(model)(inputs, uniform_noise(0, range(6), GRID))
    return {f"{prefix}_{key}": value for key, value in sampled.items()}
