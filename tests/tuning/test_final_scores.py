import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from fake_trials import TRIALS, make_record, write_trial
from PIL import Image

from brainslices.errors import InputError
from brainslices.runs.json_files import load_config, write_json
from tuning.config import SearchConfig
from tuning.final_scores import (
    Finalist,
    collect_finalists,
    describe_finalists,
    order_confidence,
    rank_correlation,
)
from tuning.report import read_search, write_report
from vqvae.config import VQVAEConfig, VQVAETraining

CONFIG = SearchConfig(rate_weight=2.0, trials=5, finalists=2)


def make_final(number, trial, seed, ssim, rate):
    record = make_record(number, trial.values["num_embeddings"], ssim, rate)
    return dataclasses.replace(record, values=trial.values, final_seed=seed)


# The second best trial wins the full training; a seed of it failed.
FINALS = [
    make_final(5, TRIALS[1], 0, 0.880, 0.050),
    make_final(6, TRIALS[1], 1, 0.886, 0.050),
    make_final(7, TRIALS[2], 0, 0.905, 0.050),
    make_final(8, TRIALS[2], 1, 0.901, 0.050),
    make_final(9, TRIALS[2], 2, None, 0),
]


def finalist(*scores):
    return Finalist(TRIALS[0], 1, [dataclasses.replace(TRIALS[0], score=one) for one in scores])


def test_finalists_are_ordered_by_the_mean_of_their_seeds():
    first, second = collect_finalists(CONFIG, [*TRIALS, *FINALS])
    assert (first.trial, first.rank, len(first.finals)) == (TRIALS[2], 2, 2)
    assert (second.trial, second.rank, len(second.finals)) == (TRIALS[1], 1, 2)
    assert first.score == pytest.approx(0.197)
    # A configuration that was tried twice is one finalist, by its better trial.
    again = dataclasses.replace(TRIALS[1], name="10", score=TRIALS[1].score + 0.1)
    assert collect_finalists(CONFIG, [again, *TRIALS, *FINALS]) == [first, second]
    by_quality = dataclasses.replace(CONFIG, objective="val_ssim_foreground")
    scores = [finalist.score for finalist in collect_finalists(by_quality, [*TRIALS, *FINALS])]
    assert scores == sorted(scores, reverse=True)


def test_confidence_of_two_finalists_is_that_of_a_t_test():
    for seed in range(5):
        one, other = np.random.default_rng(seed).normal(size=(2, 4))
        p = scipy.stats.ttest_ind(one, other).pvalue / 2
        pair = (finalist(*one), finalist(*other))
        assert order_confidence(*pair, pair) == pytest.approx(1 - p)


def test_confidence_needs_two_seeds_of_some_finalist():
    one, other, third = finalist(0.1), finalist(0.2), finalist(0.3, 0.31)
    assert math.isnan(order_confidence(one, other, [one, other]))
    assert 0.5 < order_confidence(one, other, [one, other, third]) < 1
    equal = finalist(0.1, 0.1)
    assert order_confidence(equal, other, [equal, other]) == 1
    assert order_confidence(equal, equal, [equal, equal]) == 0.5


@pytest.mark.parametrize(
    ("trials", "finals", "tau"),
    [((1, 2, 3), (4, 5, 6), 1), ((1, 2, 3), (6, 5, 4), -1), ((1, 2, 3, 4), (1, 3, 2, 4), 2 / 3)],
)
def test_rank_correlation_counts_pairs_in_the_same_order(trials, finals, tau):
    pairs = zip(trials, finals, strict=True)
    finalists = [
        Finalist(dataclasses.replace(TRIALS[0], score=trial), 1, finalist(final, final).finals)
        for trial, final in pairs
    ]
    assert rank_correlation(finalists) == pytest.approx(tau)
    summary = describe_finalists(CONFIG, finalists)
    assert f"Kendall's tau) of {tau:.2f}" in summary
    assert "Kendall" not in describe_finalists(CONFIG, finalists[:2])


def test_summary_says_how_sure_the_choice_is():
    finalists = collect_finalists(CONFIG, [*TRIALS, *FINALS])
    summary = describe_finalists(CONFIG, finalists)
    assert "0.1970, the mean of 2 seeds; its trial ranked 2" in summary
    assert "in the right order with a probability of 98 %" in summary
    certain = [finalist(0.1, 0.1001), finalist(0.2, 0.2001)]
    assert "a probability of more than 99 %" in describe_finalists(CONFIG, certain)
    single = [dataclasses.replace(one, finals=one.finals[:1]) for one in finalists]
    assert "cannot be compared with the spread" in describe_finalists(CONFIG, single)
    assert "Next" not in describe_finalists(CONFIG, single[:1])


def test_report_chooses_among_the_finalists(tmp_path):
    for trial in (*TRIALS, *FINALS):
        write_trial(tmp_path, trial)
    summary = write_report(tmp_path, CONFIG)
    assert summary.startswith("4 trials completed, 1 failed.")
    assert "1 of 5 final trainings failed: " in summary
    assert "requested" not in summary
    many = dataclasses.replace(CONFIG, finalists=9)
    assert "9 finalists were requested, but only 4 configurations" in write_report(tmp_path, many)
    assert "Trained in full (20 epochs of the VQ-VAE and 20 of the prior), " in summary
    model, _ = load_config(tmp_path / "best_config.json", VQVAEConfig, VQVAETraining)
    assert (model.num_embeddings, model.downsampling) == (512, 4)
    heading, *rows = (tmp_path / "finalists.csv").read_text().splitlines()
    assert heading.startswith("trial,status,score,num_embeddings,downsampling,final_seed,")
    assert [row.split(",")[5] for row in rows] == ["0", "1", "0", "1", "2"]
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 6
    with Image.open(tmp_path / "figures" / "finalists.png") as image:
        assert min(image.size) > 200


def test_failures_of_all_final_trainings_are_told(tmp_path):
    for trial in (*TRIALS, FINALS[-1]):
        write_trial(tmp_path, trial)
    summary = write_report(tmp_path, CONFIG)
    assert summary.endswith(
        f"1 of 1 final trainings failed: {tmp_path / 'finalists.csv'} has the reasons."
    )
    assert "--finalists" not in summary


def test_page_about_a_search_shows_its_finalists(tmp_path):
    description = {"archive_hash": "a" * 64, "precision": "float32", "space": []}
    search = {"search": dataclasses.asdict(CONFIG)}
    write_json(tmp_path / "search.json", description | search)
    for trial in TRIALS:
        write_trial(tmp_path, trial)
    assert read_search(tmp_path).best == "1"
    for trial in FINALS:
        write_trial(tmp_path, trial)
    page = read_search(tmp_path)
    assert page.best == "2"
    assert [row["trial"] for row in page.finalists] == ["2", "1"]
    assert page.finalists[0]["scores"] == pytest.approx([0.195, 0.199])
    assert page.conclusion == describe_finalists(
        CONFIG, collect_finalists(CONFIG, [*TRIALS, *FINALS])
    )
    assert len(page.rows) == len(TRIALS)
    write_json(
        tmp_path / "search.json", description | {"search": {**search["search"], "trials": "5"}}
    )
    with pytest.raises(InputError, match="search.json.*trials"):
        read_search(tmp_path)
