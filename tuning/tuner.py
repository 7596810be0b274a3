"""keras-tuner's search, made to outlive a process killed at any moment.

Its algorithms are used as they are. What is added: files that are whole or not there, state that
is complete, and trials that run in processes of their own.
"""

import errno
import shutil
import sys
import time
from pathlib import Path

import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.src.engine.trial import Trial
from threadpoolctl import threadpool_limits

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError
from brainslices.runs.json_files import write_json
from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import FAILURE_FILE, ORACLE_FILE, TRIALS
from tuning.spaces import declare, load_space
from tuning.trial import folder_of, run_trial
from tuning.workers import CallFailed, call

__all__ = ["Searcher", "make_oracle"]

# How often a killed trial goes on before it counts as failed, and how soon an idle worker asks.
RETRIES, IDLE_S = 2, 0.5
# Draws in a row that were tried before until a space counts as tried out: keras-tuner's 20 leave
# some of a small one.
COLLISIONS = 2000
# What a full or broken disk says: no trial's fault, and none must count as failed for it.
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


class _CrashSafeOracle:
    """Mixin of an oracle whose state is never half written, and says all when read again."""

    def save(self):
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def reload(self):
        super().reload()
        # A trial's file is written before the oracle's: one that the oracle does not know yet will
        # be made once more, the same. In a fixed order, as algorithms go by it.
        for name in set(self.trials) - set(self.start_order):
            shutil.rmtree(self._get_trial_dir(name))
        # Each from its own folder: somebody may have copied one.
        folders = {name: Path(self._get_trial_dir(name)) for name in self.start_order}
        self.trials = {name: Trial.load(folders[name] / "trial.json") for name in folders}
        # A trial is saved as ended before it is no longer under way.
        self._retry_queue = [name for name in self._retry_queue if name not in self.end_order]


class _RandomSearch(_CrashSafeOracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Hyperband(_CrashSafeOracle, keras_tuner.oracles.HyperbandOracle):
    pass


class _BayesianOptimization(_CrashSafeOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id):
        # The generator of its restarts is no part of its state: each trial gets a new one.
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        # Its matrices are tiny: more threads only fight for the cores that others train on.
        with threadpool_limits(limits=1):
            found = super().populate_space(trial_id)
        if found["status"] == "RUNNING" and self._duplicate(found["values"]):
            # Of a small space the best guess is soon what was tried before.
            return self._random_populate_space()
        return found


def make_oracle(config: SearchConfig) -> keras_tuner.Oracle:
    """keras-tuner's algorithm for a search, which has tried nothing yet.

    Raises:
        InputError: if the space or a fixed value cannot be used.
    """
    hp = declare(load_space(config.space), config.fix)
    options = {
        "objective": keras_tuner.Objective(config.objective, OBJECTIVES[config.objective]),
        "hyperparameters": hp,
        "tune_new_entries": False,
        "allow_new_entries": False,
        "seed": config.seed + 1,  # keras-tuner takes 0 for none
        "max_consecutive_failed_trials": sys.maxsize,
    }
    if config.tuner == "hyperband":
        # Brackets without end; the number of trials ends the search.
        oracle = _Hyperband(max_epochs=config.epochs, hyperband_iterations=None, **options)
        oracle.max_trials = config.trials
    elif config.tuner == "bayesian":
        free = len(hp.space) - len(config.fix)
        first = max(2, min(3 * free, config.trials // 2))
        oracle = _BayesianOptimization(
            max_trials=config.trials, num_initial_points=first, **options
        )
    else:
        oracle = _RandomSearch(max_trials=config.trials, **options)
    oracle.verbose = 0
    oracle._max_collisions = COLLISIONS
    return oracle


class Searcher(BaseTuner):
    """Asks for trials and runs them, each in a process of its own; or, as the chief, deals them.

    Which of them is told by keras-tuner's environment variables.

    Args:
        data: the archive's folder.
        out: the search's folder, in which a search that was begun goes on.
        config: the search.
    """

    def __init__(self, data: Path, out: Path, config: SearchConfig):
        self.data, self.out, self.config = Path(data), Path(out), config
        super().__init__(make_oracle(config), directory=str(out), project_name=TRIALS)

    def _get_tuner_fname(self):
        # Whether there is something to go on with; the tuner itself has no state.
        return str(Path(self.project_dir) / ORACLE_FILE)

    def save(self):
        """Write the oracle's state, where the oracle is."""
        if not self._is_worker():
            self.oracle.save()

    def reload(self):
        """Read the oracle's state, where the oracle is."""
        if not self._is_worker():
            self.oracle.reload()

    def pre_create_trial(self):
        """Wait a little: an oracle that has nothing to try yet is asked again and again."""
        time.sleep(IDLE_S)

    def run_trial(self, trial):
        """Train what a trial asks for.

        Returns:
            As `tuning.trial.run_trial`.

        Raises:
            FailedTrialError: if that fails, with the reason in one line.
            FatalRuntimeError: if it is not the trial that fails, but the machine.
        """
        values = trial.hyperparameters.values
        words = (self.data, self.out, self.config, values)
        for left in reversed(range(RETRIES + 1)):
            try:
                log = folder_of(self.out, self.config, values) / "log.txt"
                return call(run_trial, *words, log=log)
            except (InputError, CallFailed) as error:
                reason, killed = " ".join(str(error).split()), getattr(error, "killed", False)
            except OSError as error:
                if error.errno in MACHINE_FAULTS:
                    raise keras_tuner.errors.FatalRuntimeError(str(error)) from error
                reason, killed = f"{type(error).__name__}: {error}", False
            if not (killed and left):
                break
        self._require_data()
        # A worker's message does not reach its chief.
        path = Path(self.get_trial_dir(trial.trial_id)) / FAILURE_FILE
        write_json(path, {"reason": reason})
        raise keras_tuner.errors.FailedTrialError(reason)

    def _require_data(self):
        """A mount that is gone is no trial's fault either."""
        try:
            SliceArchive.open(self.data)
        except (InputError, OSError) as error:
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from error

    def _run_and_update_trial(self, trial, *arguments, **options):
        import grpc

        try:
            super()._run_and_update_trial(trial, *arguments, **options)
        except grpc.RpcError as error:
            # Not the trial's fault: it must not count as failed.
            raise keras_tuner.errors.FatalRuntimeError(
                f"the chief of the search no longer answers ({error.code().name})"
            ) from error
        except OSError as error:  # a trial's own are told by `run_trial`; this is the records'
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from error
