"""The oracles' final trainings, without any training: scores are made up."""

import pytest
from oracle_runs import (
    TUNERS,
    complete_trial,
    fake_score,
    open_oracle,
    run_oracle,
    search_config,
    short_optimization,  # noqa: F401
)

from tuning.config import FINAL_SEED

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*"),
    pytest.mark.usefixtures("short_optimization"),
]
FINALS = {"finalists": 2, "final_seeds": 2}


def split(tried):
    searched = [values for values in tried if FINAL_SEED not in values]
    return searched, [values for values in tried if FINAL_SEED in values]


def space_values(values):
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


@pytest.mark.parametrize("tuner", TUNERS)
def test_best_configurations_are_trained_in_full_with_each_seed(tmp_path, tuner):
    tried = run_oracle(tmp_path, search_config(tuner, **FINALS))
    searched, finals = split(tried)
    assert (len(searched), tried[len(searched) :]) == (8, finals)
    ranked = []
    for values in sorted(searched, key=fake_score):
        if space_values(values) not in ranked:
            ranked.append(space_values(values))
    expected = [{**values, FINAL_SEED: seed} for values in ranked[:2] for seed in (0, 1)]
    assert finals == expected


@pytest.mark.parametrize("tuner", TUNERS)
def test_finals_reloaded_after_every_step_equal_undisturbed_ones(tmp_path, tuner):
    config = search_config(tuner, trials=4, **FINALS)
    undisturbed = run_oracle(tmp_path / "a", config)
    assert len(undisturbed) == 8
    reloaded = run_oracle(tmp_path / "b", config, lambda *_: open_oracle(tmp_path / "b", config))
    assert reloaded == undisturbed


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_finals_added_to_a_finished_search_leave_its_trials(tmp_path, tuner):
    searched = run_oracle(tmp_path, search_config(tuner))
    added = run_oracle(tmp_path, search_config(tuner, **FINALS))
    assert all(FINAL_SEED in values for values in added)
    assert len(added) == 4
    third = sorted(map(space_values, searched), key=fake_score)[2]
    more = run_oracle(tmp_path, search_config(tuner, **{**FINALS, "finalists": 3}))
    assert more == [{**third, FINAL_SEED: seed} for seed in (0, 1)]


def test_algorithm_does_not_see_the_scores_of_final_trainings(tmp_path):
    """Trials added after finals are those of a search without finals."""
    undisturbed = run_oracle(tmp_path / "a", search_config("random", trials=12))
    run_oracle(tmp_path / "b", search_config("random", trials=8, **FINALS))
    added, finals = split(run_oracle(tmp_path / "b", search_config("random", trials=12, **FINALS)))
    assert added == undisturbed[8:]
    ranked = sorted(undisturbed, key=fake_score)[:2]
    done = sorted(undisturbed[:8], key=fake_score)[:2]
    assert [space_values(values) for values in finals[::2]] == [
        values for values in ranked if values not in done
    ]
    seen = []
    run_oracle(tmp_path / "d", search_config("bayesian", trials=8, **FINALS))
    oracle = open_oracle(tmp_path / "d", search_config("bayesian", trials=20, **FINALS))
    oracle._vectorize_trials = lambda: seen.append(dict(oracle.trials)) or (1 / 0)
    with pytest.raises(ZeroDivisionError):
        oracle.populate_space("12")
    assert len(seen[-1]) == 8 < len(oracle.trials) == 12


def test_finals_wait_for_the_last_trial_of_another_worker(tmp_path):
    config = search_config("random", trials=2, finalists=1, final_seeds=1)
    oracle = open_oracle(tmp_path, config)
    first, second = oracle.create_trial("one"), oracle.create_trial("two")
    complete_trial(oracle, first, config.objective, 0.5)
    assert oracle.create_trial("one").status == "IDLE"
    complete_trial(oracle, second, config.objective, 0.4)
    final = oracle.create_trial("one")
    assert final.hyperparameters.values == {**second.hyperparameters.values, FINAL_SEED: 0}
    assert oracle.create_trial("two").status == "STOPPED"


def test_exhausted_space_has_finals_too(tmp_path):
    options = {"space": "codebook", "fix": ("downsampling=8",), "trials": 50}
    config = search_config("random", finalists=1, final_seeds=2, **options)
    oracle, tried = open_oracle(tmp_path, config), []
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        tried.append(trial.hyperparameters.values)
        complete_trial(oracle, trial, config.objective, tried[-1]["num_embeddings"] / 1000)
    assert [values.get(FINAL_SEED) for values in tried] == [None] * 9 + [0, 1]
    assert {values["num_embeddings"] for values in tried[9:]} == {16}


def test_failed_final_is_not_repeated(tmp_path):
    config = search_config("random", trials=1, finalists=1, final_seeds=2)
    oracle = open_oracle(tmp_path, config)
    complete_trial(oracle, oracle.create_trial("one"), config.objective, 0.5)
    seeds = []
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        seeds.append(trial.hyperparameters.values[FINAL_SEED])
        trial.status = "FAILED"
        oracle.end_trial(trial)
    assert seeds == [0, 1]
