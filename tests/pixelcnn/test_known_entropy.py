import keras
import numpy as np
import pytest
from tiny_prior import tiny_pixelcnn

GRID, START = (6, 6), np.array([0.5, 0.3, 0.2])
TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.25, 0.05, 0.7]])


def markov_grids(count, seed):
    """Grids whose rows are independent Markov chains over three codes."""
    rng = np.random.default_rng(seed)
    codes = np.empty((count, *GRID), "int32")
    cumulative = np.broadcast_to(START.cumsum(), (count, GRID[0], 3))
    for col in range(GRID[1]):
        noise = rng.random((count, GRID[0], 1))
        codes[..., col] = (noise > cumulative).sum(axis=-1).clip(max=2)
        cumulative = TRANSITION.cumsum(axis=1)[codes[..., col]]
    return {"codes": codes, "position": rng.random(count).astype("float32")}


def entropy_per_code():
    """The exact entropy of the grids, in nats per code."""
    of_rows = -np.sum(TRANSITION * np.log(TRANSITION), axis=1)
    total, marginal = -np.sum(START * np.log(START)), START
    for _ in range(GRID[1] - 1):
        total += marginal @ of_rows
        marginal = marginal @ TRANSITION
    return total / GRID[1]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_keras")
def test_prior_reaches_the_entropy_of_markov_chains():
    net = {"channels": 16, "layers": 2, "first_kernel_size": 3, "attention_layers": 0}
    model = tiny_pixelcnn(GRID, 3, fill=False, dropout=0.0, **net)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 320)))
    model.fit(markov_grids(2048, seed=0), batch_size=64, epochs=10, verbose=0)
    test = model.evaluate(markov_grids(2048, seed=1), batch_size=256, verbose=0, return_dict=True)
    # Test grids have a sampling error of 0.3 %.
    assert test["nats_per_code"] == pytest.approx(entropy_per_code(), rel=0.02)
