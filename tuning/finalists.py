"""Final trainings: after the trials, the best configurations are trained in full, by several seeds.

Short trials favour configurations that learn fast, so the best trial need not win a full training.
A final training is a trial of keras-tuner like the others, with the value `FINAL_SEED`: the same
workers run it, and it is resumed and retried in the same way.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from tuning import compat
from tuning.config import FINAL_SEED

__all__ = ["BayesianOptimization", "FinalistsOracle", "Hyperband", "RandomSearch"]


class FinalistsOracle(keras_tuner.Oracle):
    """Mixin of an oracle: hands out the final trainings once all trials have ended."""

    trials: dict[str, Trial]
    search_trials = 0
    """Number of trials, without the final trainings."""
    finalists = 0
    """Number of configurations to train in full."""
    final_seeds = 1
    """Trainings of each of them."""

    @property
    def max_trials(self) -> int:
        """Most trials of both kinds, with the final trainings of an earlier, smaller search."""
        finals = sum(map(_is_final, self.trials.values()))
        return self.search_trials + finals + self.finalists * self.final_seeds

    @max_trials.setter
    def max_trials(self, value: int | None) -> None:
        self.search_trials = value or 0

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Choose the values of the next trial, or of the next final training."""
        searched = {name: one for name, one in self.trials.items() if not _is_final(one)}
        if len(searched) < self.search_trials:
            with self._replaced_trials(searched):
                response = super().populate_space(trial_id)
            if response["status"] != TrialStatus.STOPPED:
                return response
        unfinished = {TrialStatus.RUNNING, TrialStatus.INVALID}
        if self.finalists and any(one.status in unfinished for one in searched.values()):
            return {"status": TrialStatus.IDLE}
        started = [one.hyperparameters.values for one in self.trials.values() if _is_final(one)]
        for values in self._rank(searched.values())[: self.finalists]:
            for seed in range(self.final_seeds):
                final = {**values, FINAL_SEED: seed}
                if final not in started:
                    return {"status": TrialStatus.RUNNING, "values": final}
        return {"status": TrialStatus.STOPPED}

    @contextlib.contextmanager
    def _replaced_trials(self, trials: dict[str, Trial]) -> Iterator[None]:
        """Hide the final trainings: their scores cannot be compared with those of the trials."""
        everything, self.trials = self.trials, trials
        try:
            yield
        finally:
            self.trials = everything

    def _rank(self, trials):
        """Values of the space of the completed trials, distinct, the best ones first."""
        sign = -1 if self.objective.direction == "max" else 1
        completed = [one for one in trials if one.status == TrialStatus.COMPLETED]
        names, ranked = [dimension.name for dimension in self.hyperparameters.space], []
        for trial in sorted(completed, key=lambda one: sign * one.score):
            tried = trial.hyperparameters.values
            values = {name: tried[name] for name in names}
            if values not in ranked:  # hyperband trains a configuration in several trials
                ranked.append(values)
        return ranked


def _is_final(trial):
    return FINAL_SEED in trial.hyperparameters.values


class RandomSearch(FinalistsOracle, compat.RandomSearch):
    """Random search, then the final trainings."""


class Hyperband(FinalistsOracle, compat.Hyperband):
    """Hyperband, then the final trainings."""


class BayesianOptimization(FinalistsOracle, compat.BayesianOptimization):
    """Bayesian optimization, then the final trainings."""
