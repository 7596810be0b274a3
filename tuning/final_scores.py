"""Scores of the final trainings of a search: the choice among finalists, and how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats

from brainslices.types import PathLike
from brainslices.visualization.figures import BLUE, GREY, figure_panels
from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import TrialRecord, format_value, rank_configurations, split_finals

__all__ = [
    "Finalist",
    "collect_finalists",
    "describe_finalists",
    "draw_finalists",
    "order_confidence",
    "rank_correlation",
]

# With two finalists the rank correlation can only be 1 or -1.
MIN_RANKED = 3
# A probability above this one is not rounded to 100 %.
CERTAIN = 0.99


@dataclass(frozen=True)
class Finalist:
    """A configuration with its trial and its completed final trainings, at least one.

    Attributes:
        trial: its best trial.
        rank: rank of that trial among the configurations of the trials, from 1.
        finals: the final trainings.
    """

    trial: TrialRecord
    rank: int
    finals: Sequence[TrialRecord]

    @property
    def scores(self) -> np.ndarray:
        """Scores of the final trainings, float64 of shape (seeds,)."""
        return np.array([final.score for final in self.finals], float)

    @property
    def score(self) -> float:
        """Mean of `scores`."""
        return float(self.scores.mean())


def collect_finalists(config: SearchConfig, trials: Sequence[TrialRecord]) -> list[Finalist]:
    """Collect the configurations that have a completed final training, the best first.

    Args:
        config: the search.
        trials: all its trials, of any status.
    """
    searched, finals = split_finals(trials)
    direction = OBJECTIVES[config.objective]
    finalists = []
    for rank, trial in enumerate(rank_configurations(searched, direction), start=1):
        own = [one for one in finals if one.values == trial.values and one.score is not None]
        if own:
            finalists.append(Finalist(trial, rank, own))
    sign = -1 if direction == "max" else 1
    return sorted(finalists, key=lambda finalist: sign * finalist.score)


def order_confidence(first: Finalist, second: Finalist, finalists: Sequence[Finalist]) -> float:
    """Probability that two finalists are in the right order, given the spread over seeds.

    One-sided p-value of Student's t-test with the variance pooled over all finalists, subtracted
    from 1. It ignores that the first was selected as the best.

    Args:
        first: the better one.
        second: the other one.
        finalists: all finalists, whose seeds estimate the variance.

    Returns:
        From 0.5 to 1; NaN if no finalist has two seeds.
    """
    degrees = sum(len(one.scores) - 1 for one in finalists)
    if not degrees:
        return math.nan
    squares = sum(((one.scores - one.score) ** 2).sum() for one in finalists)
    inverse_counts = 1 / len(first.scores) + 1 / len(second.scores)
    error = math.sqrt(squares / degrees * inverse_counts)
    difference = abs(first.score - second.score)
    if not error:  # no spread: certain, or a tie
        return 1.0 if difference else 0.5
    return float(scipy.stats.t.cdf(difference / error, degrees))


def rank_correlation(finalists: Sequence[Finalist]) -> float:
    """Kendall's tau-b between the scores of the trials and those of the final trainings.

    Args:
        finalists: at least two.

    Returns:
        From -1 to 1: without ties, the share of pairs in the same order minus that of the others.
        NaN if all scores of one kind are equal.

    Reference:
        Kendall 1945, "The treatment of ties in ranking problems".
    """
    trials = [one.trial.score for one in finalists]
    return float(scipy.stats.kendalltau(trials, [one.score for one in finalists]).statistic)


def describe_finalists(config: SearchConfig, finalists: Sequence[Finalist]) -> str:
    """Describe in one paragraph which finalist is the best, and how sure that is.

    Args:
        config: the search.
        finalists: as `collect_finalists` returns them, at least one.
    """
    best, *others = finalists
    prior = f" and {config.final_prior_epochs} of the prior"
    length = f"{config.final_epochs} epochs of the VQ-VAE"
    length += prior if config.objective == "val_rate_distortion" else ""
    sentences = [
        f"Trained in full ({length}), {_name(config, best)} is best by {config.objective}: "
        f"{best.score:.4f}, the mean of {_count_seeds(best)}; its trial ranked {best.rank}."
    ]
    if others:
        second = others[0]
        difference = abs(best.score - second.score)
        sentences.append(
            f"Next is {_name(config, second)} with {second.score:.4f}; its trial ranked "
            f"{second.rank}."
        )
        confidence = order_confidence(best, second, finalists)
        sentences.append(
            f"Their difference, {difference:.4f}, cannot be compared with the spread over seeds: "
            "each finalist has one."
            if math.isnan(confidence)
            else f"Given the spread over seeds, these two are in the right order with a "
            f"probability of {_percent(confidence)} %."
        )
    if len(finalists) >= MIN_RANKED and not math.isnan(rank_correlation(finalists)):
        sentences.append(
            f"The trials and the final trainings of the {len(finalists)} finalists have a rank "
            f"correlation (Kendall's tau) of {rank_correlation(finalists):.2f}."
        )
    return " ".join(sentences)


def _percent(probability):
    return "more than 99" if probability > CERTAIN else f"{100 * probability:.0f}"


def _name(config, finalist):
    """The values of a finalist that the search varies."""
    values = [
        f"{name} {format_value(value)}"
        for name, value in finalist.trial.values.items()
        if name not in config.fixed_names
    ]
    return ", ".join(values) or "the only configuration"


def _count_seeds(finalist):
    count = len(finalist.finals)
    return "one seed" if count == 1 else f"{count} seeds"


def draw_finalists(path: PathLike, config: SearchConfig, finalists: Sequence[Finalist]) -> None:
    """Draw the scores of all seeds and trials, a row for each finalist, the best on top."""
    rows = np.arange(len(finalists))
    seed_rows = np.repeat(rows, [len(one.finals) for one in finalists])
    points = {
        # A ring, so that it is seen around a seed with the same score.
        "trial": ([one.trial.score for one in finalists], rows, GREY, "o", 10),
        "a seed, trained in full": (
            np.concatenate([one.scores for one in finalists]),
            seed_rows,
            BLUE,
            "o",
            6,
        ),
        "mean of the seeds": ([one.score for one in finalists], rows, BLUE, "|", 18),
    }
    inches = (7.2, 1.4 + 0.45 * len(finalists))
    with figure_panels(Path(path), 1, 1, inches=inches) as (panel,):
        for label, (scores, heights, color, marker, size) in points.items():
            style = {"color": color, "marker": marker, "markersize": size, "linestyle": "none"}
            style |= {"markerfacecolor": "none"} if label == "trial" else {}
            panel.plot(scores, heights, label=label, **style)
        panel.set_yticks(rows, labels=[_name(config, finalist) for finalist in finalists])
        panel.set_ylim(len(finalists) - 0.5, -0.5)
        panel.set(xlabel=config.objective, title="Finalists, the best on top")
        panel.figure.legend(loc="outside lower center", ncols=3)
