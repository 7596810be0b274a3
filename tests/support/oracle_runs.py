"""Searches without any training: real oracles, fake scores."""

import math

import pytest
import scipy.optimize

from tuning.config import SearchConfig
from tuning.tuner import make_oracle

TUNERS = ["random", "bayesian", "hyperband"]
# Leaves the codebook size and the learning rate of the space `full`.
FIXED = (
    *("width=64", "embedding_dim=32", "downsampling=8", "magnification=1.2"),
    "commitment_cost=0.25",
)


@pytest.fixture
def short_optimization(monkeypatch):
    """Evaluate only the starting points of the Bayesian optimizer's inner optimizations."""

    def evaluate(function, x0, jac=False, **options):
        value = function(x0)[0] if jac else function(x0)
        return scipy.optimize.OptimizeResult(x=x0, fun=value, status=0, success=True, nit=0)

    monkeypatch.setattr(scipy.optimize, "minimize", evaluate)


def search_config(tuner, **changes):
    options = {"space": "full", "fix": FIXED, "trials": 8, "epochs": 9, "seed": 0}
    return SearchConfig(tuner=tuner, **{**options, **changes})


def open_oracle(folder, config):
    """A new oracle object, as in a process that starts or resumes a search."""
    oracle = make_oracle(config)
    oracle._set_project_dir(str(folder), "trials")
    if (folder / "trials" / "oracle.json").exists():
        oracle.reload()
    return oracle


def fake_score(values):
    """Lowest at 256 codes and a learning rate of 0.001."""
    distance = abs(math.log2(values["num_embeddings"]) - 8)
    return distance + abs(math.log(values["learning_rate"] / 1e-3))


def complete_trial(oracle, trial, objective, score):
    oracle.update_trial(trial.trial_id, {objective: score})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def run_oracle(folder, config, disturb=lambda moment, oracle: oracle):
    """Run a search of one worker; `disturb` may replace the oracle after each step."""
    oracle, tried = open_oracle(folder, config), []
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        oracle = disturb("created", oracle)
        if "one" not in oracle.ongoing_trials:  # it was reloaded
            repeated = oracle.create_trial("one")
            assert repeated.trial_id == trial.trial_id
            assert repeated.hyperparameters.values == trial.hyperparameters.values
        values = trial.hyperparameters.values
        complete_trial(oracle, trial, config.objective, fake_score(values))
        oracle.save()
        oracle = disturb("ended", oracle)
        tried.append(values)
    return tried
