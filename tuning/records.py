"""Trials of a search, read from the files in its folder."""

import contextlib
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.runs.atomic import atomic_path
from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run
from brainslices.schema import INTEGER, NUMBER, OBJECT, OPTIONAL_NUMBER, STRING, Rule, check_fields
from brainslices.types import PathLike
from tuning.config import FINAL_SEED, METRICS

__all__ = [
    "FAILURE_FILE",
    "ORACLE_FILE",
    "TRIALS",
    "TrialRecord",
    "best_trial",
    "check_records",
    "current_epoch",
    "finished_trials",
    "format_value",
    "rank_configurations",
    "rank_trials",
    "read_trials",
    "split_finals",
    "write_table",
]

# keras-tuner's folder in the search folder, its state file there, and the file that a failed trial
# leaves in its own folder.
TRIALS, ORACLE_FILE, FAILURE_FILE = "trials", "oracle.json", "failure.json"
REPAIR = "Restore it from a copy, or search into a new --out."
# The fields of a trial.json that are read.
STATE = {
    "trial_id": STRING,
    "status": STRING,
    "metrics": OBJECT,
    "hyperparameters": OBJECT,
    "score": OPTIONAL_NUMBER,
}
NAMES = Rule(
    lambda value: isinstance(value, list) and all(map(STRING.is_valid, value)), "a list of strings"
)
# The fields of oracle.json whose types keras-tuner does not check.
ORACLE = {"start_order": NAMES, "end_order": NAMES, "retry_queue": NAMES, "tried_so_far": NAMES}
ORACLE |= {"seed": INTEGER, "seed_state": INTEGER}
# An INVALID trial waits for its retry; any other status than these is a failure.
STATUS = {"RUNNING": "running", "INVALID": "running", "COMPLETED": "completed"}


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        name: number of the trial, as keras-tuner writes it.
        status: "running" (or interrupted, if no search runs), "completed" or "failed".
        values: dimension of the space -> value.
        metrics: `tuning.config.METRICS` -> value; empty unless completed.
        score: the objective; None unless completed.
        reason: why the trial failed; empty unless failed.
        final_seed: number of the seed of a final training; None for a trial of the search.
    """

    name: str
    status: str
    values: dict[str, Any]
    metrics: dict[str, float]
    score: float | None
    reason: str
    final_seed: int | None = None

    @property
    def run_values(self) -> dict[str, Any]:
        """The values that its training was given, as `tuning.trial.trial_folder` takes them."""
        seed = {} if self.final_seed is None else {FINAL_SEED: self.final_seed}
        return self.values | seed


def read_trials(out: PathLike) -> list[TrialRecord]:
    """Read the trials of a search folder, in the order of their start.

    Args:
        out: search folder.

    Returns:
        All trials, also final trainings and those that failed or run; none if there is no folder.

    Raises:
        InputError: if a trial's file is corrupt.
    """
    paths = {}
    for path in (Path(out) / TRIALS).glob("trial_*/trial.json"):
        number = path.parent.name.removeprefix("trial_")
        if number.isdecimal():  # a copied folder is no trial
            paths[int(number)] = path
    records = (_read_trial(paths[number]) for number in sorted(paths))
    return [record for record in records if record is not None]


def _read_trial(path):
    """Read one trial; None if a reloading search has just removed it."""
    try:
        with reading(path, "trial", REPAIR):
            return _parse_trial(read_json(path, STATE), path.with_name(FAILURE_FILE))
    except InputError:
        if path.exists():
            raise
        return None


def _parse_trial(state, failure_path):
    status = STATUS.get(state["status"], "failed")
    tracked = state["metrics"]["metrics"] if status == "completed" else {}
    metrics = {name: metric["observations"][-1]["value"][-1] for name, metric in tracked.items()}
    reason = ""
    if status == "failed":
        known = failure_path.is_file()
        failure = read_json(failure_path, {"reason": STRING}, hint=REPAIR) if known else {}
        reason = failure.get("reason", "unknown; see the logs in logs/")
    # A chief's workers report values and metrics in any order.
    names = [dimension["config"]["name"] for dimension in state["hyperparameters"]["space"]]
    values = state["hyperparameters"]["values"]
    check_fields(metrics, dict.fromkeys(metrics, NUMBER))
    return TrialRecord(
        state["trial_id"],
        status,
        {name: values[name] for name in names if name in values},
        {name: metrics[name] for name in METRICS if name in metrics},
        state["score"] if status == "completed" else None,
        reason,
        values.get(FINAL_SEED),
    )


def check_records(out: PathLike) -> None:
    """Check keras-tuner's files before any process of a search resumes from them.

    Raises:
        InputError: naming the file that is corrupt or missing.
    """
    import keras_tuner
    from keras_tuner.engine.trial import Trial

    trials, folder = read_trials(out), Path(out) / TRIALS
    path, oracle = folder / ORACLE_FILE, keras_tuner.oracles.RandomSearchOracle()
    if not path.exists():
        return
    with reading(path, "state of a search", REPAIR):
        state = read_json(path, ORACLE)
    if missing := set(state["start_order"]) - {trial.name for trial in trials}:
        raise InputError(
            f"{folder} has lost trial.json of trial {', '.join(sorted(missing))}. Restore it "
            "from a copy, or search into a new --out."
        )
    # keras-tuner forgets a trial that the state does not list: right only after a kill.
    if unknown := {trial.name for trial in finished_trials(trials)} - set(state["start_order"]):
        raise InputError(f"{path} does not list the trial {', '.join(sorted(unknown))}. {REPAIR}")
    for trial in trials:
        with reading(file := folder / f"trial_{trial.name}" / "trial.json", "trial", REPAIR):
            oracle.trials[trial.name] = Trial.load(str(file))
    with reading(path, "state of a search", REPAIR):
        oracle.set_state(state)


def split_finals(trials: Iterable[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Separate the trials of the search from the final trainings."""
    trials = list(trials)
    finals = [trial for trial in trials if trial.final_seed is not None]
    return [trial for trial in trials if trial.final_seed is None], finals


def finished_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Select the completed and the failed trials."""
    return [trial for trial in trials if trial.status != "running"]


def rank_trials(trials: Iterable[TrialRecord], direction: str) -> list[TrialRecord]:
    """Sort the completed trials, the best score first; equal scores stay in their order.

    Args:
        trials: trials of any status.
        direction: "max" or "min", the better direction of the score.
    """
    sign = -1 if direction == "max" else 1
    ranked = [(sign * trial.score, trial) for trial in trials if trial.score is not None]
    return [trial for _, trial in sorted(ranked, key=lambda pair: pair[0])]


def rank_configurations(trials: Iterable[TrialRecord], direction: str) -> list[TrialRecord]:
    """Return the best trial of each configuration, in the order of `rank_trials`.

    Args:
        trials: trials of any status; with hyperband a configuration has several.
        direction: as for `rank_trials`.
    """
    best: dict[tuple, TrialRecord] = {}
    for trial in rank_trials(trials, direction):
        best.setdefault(tuple(trial.values.items()), trial)
    return list(best.values())


def format_value(value: Any) -> str:
    """Format the value of a dimension; floats have three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best_trial(trials: Iterable[TrialRecord], direction: str) -> TrialRecord | None:
    """Return the first of `rank_trials`; None if no trial is completed."""
    return next(iter(rank_trials(trials, direction)), None)


def write_table(path: PathLike, trials: Sequence[TrialRecord], run_folders: Sequence[str]) -> None:
    """Write a CSV file: trial, status, score, dimensions of the space, metrics, runs, reason.

    Args:
        path: CSV file.
        trials: the rows; with those of final trainings there is a column `final_seed`.
        run_folders: folder name of each trial's runs; empty if it has none.
    """
    dimensions = list(dict.fromkeys(name for trial in trials for name in trial.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    if any(trial.final_seed is not None for trial in trials):
        dimensions.append(FINAL_SEED)
    options: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic_path(Path(path)) as temporary, temporary.open("w", **options) as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [name.removeprefix("tuner/") for name in dimensions]
        writer.writerow(["trial", "status", "score", *names, *metrics, "runs", "reason"])
        for trial, folder in zip(trials, run_folders, strict=True):
            row = [trial.name, trial.status, trial.score]
            row += [trial.run_values.get(name) for name in dimensions]
            row += [trial.metrics.get(name) for name in metrics]
            writer.writerow([*row, folder, trial.reason])


def current_epoch(runs: Path) -> str:
    """Describe the progress of a running trial, such as "vqvae, epoch 3".

    Args:
        runs: folder of the trial's runs.
    """
    # A trial removes the prior of outdated codes at any moment, after more epochs of the VQ-VAE.
    latest, progress = -1.0, "starting"
    for path in [runs / "vqvae", *runs.glob("prior-*")]:
        with contextlib.suppress(FileNotFoundError):
            history = Run(path).history_path
            modified, lines = history.stat().st_mtime, history.read_bytes().count(b"\n")
            if modified > latest:
                stage = path.name.partition("-")[0]
                latest, progress = modified, f"{stage}, epoch {max(lines - 1, 0)}"
    return progress
