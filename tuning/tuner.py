"""The tuner of a search: keras-tuner's algorithms, each trial in a process of its own."""

import errno
import sys
import time
from pathlib import Path

import keras_tuner
from keras_tuner.engine.trial import Trial

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError
from brainslices.runs.json_files import write_json
from brainslices.types import PathLike
from tuning.compat import CrashSafeTuner
from tuning.config import OBJECTIVES, SearchConfig
from tuning.finalists import BayesianOptimization, FinalistsOracle, Hyperband, RandomSearch
from tuning.records import FAILURE_FILE, TRIALS
from tuning.spaces import declare, load_space
from tuning.trial import run_trial, trial_folder
from tuning.workers import CallFailed, call

__all__ = ["Searcher", "make_oracle"]

# Retries of a trial whose process was killed.
MAX_RETRIES = 2
# Pause between requests of a worker: an idle oracle replies at once.
REQUEST_INTERVAL_S = 0.5
# Errors of a full or broken disk, which must not count as a failed trial.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


def make_oracle(config: SearchConfig) -> FinalistsOracle:
    """Build keras-tuner's algorithm for a new search.

    Raises:
        InputError: if the space or a fixed value is invalid.
    """
    oracle = _make_algorithm(config)
    oracle.finalists, oracle.final_seeds = config.finalists, config.final_seeds
    return oracle


def _make_algorithm(config):
    hp = declare(load_space(config.space), config.fix)
    options = {
        "objective": keras_tuner.Objective(config.objective, OBJECTIVES[config.objective]),
        "hyperparameters": hp,
        "tune_new_entries": False,
        "allow_new_entries": False,
        "seed": config.seed + 1,  # keras-tuner draws a seed in place of 0
        "max_retries_per_trial": MAX_RETRIES,
        "max_consecutive_failed_trials": sys.maxsize,
    }
    if config.tuner == "hyperband":
        # Unlimited brackets: the number of trials ends the search.
        oracle = Hyperband(max_epochs=config.epochs, hyperband_iterations=None, **options)
        oracle.max_trials = config.trials
        return oracle
    options["max_trials"] = config.trials
    if config.tuner == "random":
        return RandomSearch(**options)
    free_dimensions = len(hp.space) - len(config.fix)
    num_initial_points = max(2, min(3 * free_dimensions, config.trials // 2))
    return BayesianOptimization(num_initial_points=num_initial_points, **options)


class Searcher(CrashSafeTuner):
    """The only process, the chief or a worker of a search, by keras-tuner's environment variables.

    Args:
        data: archive folder.
        out: search folder; a search in it is resumed.
        config: the search.
    """

    def __init__(self, data: PathLike, out: PathLike, config: SearchConfig):
        self.data, self.out, self.config = Path(data), Path(out), config
        super().__init__(make_oracle(config), directory=str(out), project_name=TRIALS)

    def pre_create_trial(self) -> None:
        """Wait before the next request."""
        time.sleep(REQUEST_INTERVAL_S)

    def run_trial(self, trial: Trial) -> dict[str, float]:
        """Train a trial in a fresh process.

        Returns:
            As `tuning.trial.run_trial`.

        Raises:
            FailedTrialError: if the trial fails; the reason is in its `failure.json`.
            CallFailed: if its process was killed; keras-tuner then retries the trial.
            FatalRuntimeError: if the disk or the archive fails, which ends the search.
        """
        values = trial.hyperparameters.values
        try:
            log = trial_folder(self.out, self.config, values) / "log.txt"
            return call(run_trial, self.data, self.out, self.config, values, log=log)
        except (InputError, CallFailed, OSError) as error:
            self._check_machine(error)
            message = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error
            reason = " ".join(str(message).split())
            # keras-tuner drops the message of a worker's trial on the way to the chief.
            path = Path(self.get_trial_dir(trial.trial_id)) / FAILURE_FILE
            write_json(path, {"reason": reason})
            if isinstance(error, CallFailed) and error.is_killed:
                raise
            raise keras_tuner.errors.FailedTrialError(reason) from error

    def _check_machine(self, error):
        """Stop the search if the disk is full or the archive is gone, as after a lost mount."""
        if getattr(error, "errno", None) in DISK_FAULTS:
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from error
        try:
            SliceArchive.open(self.data)
        except (InputError, OSError) as fault:
            raise keras_tuner.errors.FatalRuntimeError(str(fault)) from fault
