"""The only module that uses private names of keras-tuner: a crash-safe tuner and its oracles.

The algorithms themselves are unchanged. tests/tuning/test_compat.py exercises every hook, so an
upgrade of keras-tuner that changes one fails there.
"""

import shutil
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.src.distribute import oracle_client
from threadpoolctl import threadpool_limits

from brainslices.runs.json_files import write_json
from tuning.records import ORACLE_FILE

__all__ = [
    "BayesianOptimization",
    "CrashSafeTuner",
    "Hyperband",
    "RandomSearch",
    "set_client_timeout",
]

# Duplicate draws in a row after which a space counts as exhausted. keras-tuner's 20 are too few to
# reach every configuration of a small space.
MAX_COLLISIONS = 2000


class _CrashSafeOracle(keras_tuner.Oracle):
    """Mixin: files are written atomically, and reloading restores a complete, consistent state."""

    trials: dict[str, Trial]
    _retry_queue: list[str]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.verbose = 0
        self._max_collisions = MAX_COLLISIONS

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def reload(self) -> None:
        super().reload()
        # A trial's file is written before the oracle's. After a kill in between, the oracle does
        # not know the trial and creates the same one again.
        for name in set(self.trials) - set(self.start_order):
            shutil.rmtree(self._get_trial_dir(name))
        # In the order of creation, which the algorithms depend on, and only from each trial's own
        # folder: upstream also reads copies of such folders.
        paths = {name: Path(self._get_trial_dir(name)) / "trial.json" for name in self.start_order}
        self.trials = {name: Trial.load(path) for name, path in paths.items()}
        # After a kill while a trial's end is recorded, the oracle's file lists it both as ended (or
        # queued for a retry) and as running, and upstream queues all that are running.
        pending = dict.fromkeys(self._retry_queue)
        self._retry_queue = [name for name in pending if name not in self.end_order]


class RandomSearch(_CrashSafeOracle, keras_tuner.oracles.RandomSearchOracle):
    """keras-tuner's random search."""


class Hyperband(_CrashSafeOracle, keras_tuner.oracles.HyperbandOracle):
    """keras-tuner's Hyperband."""


class BayesianOptimization(_CrashSafeOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """keras-tuner's Bayesian optimization, reproducible after a restart and without duplicates."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Choose the values of the next trial."""
        # The RNG of its optimizer restarts is not saved: derive one from the trial's number.
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        # The matrices are tiny: more threads only compete with the trainings for the cores.
        with threadpool_limits(limits=1):
            response = super().populate_space(trial_id)
        if response["status"] == "RUNNING" and self._duplicate(response["values"]):
            # In a small space the optimum of the model has often been tried already.
            return self._random_populate_space()
        return response


class CrashSafeTuner(BaseTuner):
    """Base of a tuner without state of its own: all state is the oracle's."""

    def _get_tuner_fname(self):
        # `BaseTuner` resumes if this file exists.
        return str(Path(self.project_dir) / ORACLE_FILE)

    def save(self) -> None:
        """Save the oracle, except on a worker, whose oracle is the chief's."""
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        """Reload the oracle, except on a worker."""
        if not self._is_worker():
            self.oracle.reload()

    def _run_and_update_trial(self, trial, *arguments, **options):
        """Run a trial; if the chief or the disk fails, end the tuner and record no failed trial."""
        import grpc

        try:
            super()._run_and_update_trial(trial, *arguments, **options)
        except grpc.RpcError as error:
            raise keras_tuner.errors.FatalRuntimeError(
                f"the chief of the search no longer answers ({error.code().name})"
            ) from error
        except OSError as error:  # of writing the records; `run_trial` handles the training's own
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from error


def set_client_timeout(seconds: float) -> None:
    """Limit how long a worker waits for a reply of its chief; keras-tuner's default is an hour."""
    oracle_client.TIMEOUT = seconds
