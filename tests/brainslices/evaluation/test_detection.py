"""Detection figures against scikit-learn, also with subjects repeated."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from brainslices.evaluation import detection
from brainslices.evaluation.detection import PixelCounts, subject_auroc


def pixels(subject, lesion_shift, seed=0):
    rng = np.random.default_rng([seed, subject])
    is_lesion = rng.random(4000) < 0.03
    scores = rng.normal(size=4000) + lesion_shift * is_lesion
    return scores, is_lesion, np.full(4000, subject)


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_average_precision_and_dice_are_those_of_every_threshold(shift):
    scores, is_lesion, subjects = map(
        np.concatenate, zip(*(pixels(k, shift) for k in range(3)), strict=True)
    )
    counts = PixelCounts(scores, is_lesion, subjects)
    value, low, high = counts.average_precision()
    assert value == pytest.approx(average_precision_score(is_lesion, scores), abs=2e-3)
    assert low <= value <= high
    dice = max(
        2 * (is_lesion & found).sum() / (is_lesion.sum() + found.sum())
        for found in (
            scores >= threshold for threshold in np.quantile(scores, np.linspace(0, 1, 999))
        )
    )
    assert counts.best_dice()[0] == pytest.approx(dice, abs=5e-3)
    assert counts.chance == pytest.approx(is_lesion.mean())


def test_repeated_subjects_count_as_often():
    """The figures of a resample are scikit-learn's with the subjects' counts as weights."""
    counts = np.array([2, 0, 1])
    scores, is_lesion, subjects = map(
        np.concatenate, zip(*(pixels(k, 1.0) for k in range(3)), strict=True)
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        drawn = np.repeat(np.arange(3), counts)
        patch.setattr(
            detection,
            "bootstrap_interval",
            lambda statistic, *_, **__: seen.append(statistic(drawn, axis=-1)),
        )
        PixelCounts(scores, is_lesion, subjects).average_precision()
        healthy, lesioned = scores[~is_lesion], scores[is_lesion]
        subject_auroc(healthy, lesioned, subjects[~is_lesion], subjects[is_lesion])
    weights = {"sample_weight": counts[subjects]}
    assert seen[0] == pytest.approx(average_precision_score(is_lesion, scores, **weights), abs=2e-3)
    assert seen[1] == pytest.approx(roc_auc_score(is_lesion, scores, **weights))


def test_scores_that_say_nothing_have_the_precision_of_chance():
    is_lesion = np.arange(1000) % 10 == 0
    counts = PixelCounts(np.zeros(1000), is_lesion, np.zeros(1000, int))
    assert counts.average_precision() == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_of_unlike_subjects_spans_them():
    parts = [pixels(0, 0.0), pixels(1, 6.0)]
    single = [PixelCounts(*part).average_precision()[0] for part in parts]
    both = PixelCounts(*map(np.concatenate, zip(*parts, strict=True))).average_precision()
    assert both[1:] == pytest.approx(single, abs=2e-3)


def test_auroc_is_scikit_learns_and_its_interval_is_by_subject():
    rng = np.random.default_rng(0)
    subjects = np.repeat(["a", "b", "c", "d"], 10)
    healthy, lesioned = rng.normal(size=40), rng.normal(1, size=40)
    area, low, high = subject_auroc(healthy, lesioned, subjects, subjects)
    labels = np.repeat([0, 1], 40)
    assert area == pytest.approx(roc_auc_score(labels, np.concatenate([healthy, lesioned])))
    assert low < area < high
    assert subject_auroc(healthy, lesioned, ["a"] * 40, ["a"] * 40) == pytest.approx((area,) * 3)
