"""What a search has tried so far, read from its folder; no process of the search is asked."""

import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run
from tuning.config import METRICS

__all__ = [
    "FAILURE_FILE",
    "ORACLE_FILE",
    "TRIALS",
    "TrialRecord",
    "best",
    "check_records",
    "epochs_done",
    "finished",
    "read_trials",
    "write_table",
]

# keras-tuner's folder below the search's, its state there, and what a trial that failed leaves in
# its own.
TRIALS, ORACLE_FILE, FAILURE_FILE = "trials", "oracle.json", "failure.json"
STATUS = {"RUNNING": "running", "COMPLETED": "completed"}


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        name: its number, as keras-tuner writes it.
        status: "running" (or interrupted, where no search runs), "completed" or "failed".
        values: name -> value of the space's dimensions.
        metrics: name -> value, as `tuning.config.METRICS`; empty unless completed.
        score: the objective; None unless completed.
        reason: why it failed; else empty.
    """

    name: str
    status: str
    values: dict
    metrics: dict
    score: float | None
    reason: str


def read_trials(out: Path) -> list[TrialRecord]:
    """The trials of a search's folder, in the order in which they began."""
    found = {}
    for path in (Path(out) / TRIALS).glob("trial_*/trial.json"):
        number = path.parent.name.removeprefix("trial_")
        if number.isdecimal():  # a folder that somebody has copied is no trial
            found[int(number)] = path
    records = (_read(found[number]) for number in sorted(found))
    return [record for record in records if record]


def _read(path):
    """The trial of a file; None if it has gone meanwhile, with a search that begins anew."""
    try:
        told = read_json(path)
    except InputError:
        if path.exists():
            raise
        return None
    try:
        return _as_record(told, path.with_name(FAILURE_FILE))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it from a copy, or "
            "search into a new --out."
        ) from error


def _as_record(told, failure):
    status = STATUS.get(told["status"], "failed")
    observed = told["metrics"]["metrics"] if status == "completed" else {}
    metrics = {name: each["observations"][-1]["value"][-1] for name, each in observed.items()}
    reason = (told["message"] or "").strip().rpartition("\n")[2].partition(": ")[2]
    reason = read_json(failure)["reason"] if failure.is_file() else reason
    # A chief's workers tell values and metrics in an order of their own.
    names = [each["config"]["name"] for each in told["hyperparameters"]["space"]]
    values = told["hyperparameters"]["values"]
    return TrialRecord(
        told["trial_id"],
        status,
        {name: values[name] for name in names if name in values},
        {name: metrics[name] for name in METRICS if name in metrics},
        told["score"] if status == "completed" else None,
        (reason or "unknown; logs/ may tell more") if status == "failed" else "",
    )


def check_records(out: Path) -> None:
    """See that what keras-tuner goes on from is whole, before any process of a search reads it.

    Raises:
        InputError: if a file is damaged, or a trial's is missing.
    """
    path = Path(out) / TRIALS / ORACLE_FILE
    known = {trial.name for trial in read_trials(out)}
    if not path.exists():
        return
    try:
        lost = set(read_json(path)["start_order"]) - known
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it from a copy, or "
            "search into a new --out."
        ) from error
    if lost:
        raise InputError(
            f"{path.parent} has lost trial.json of trial {', '.join(sorted(lost))}. Restore it "
            "from a copy, or search into a new --out."
        )


def finished(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Those that ended, well or not."""
    return [trial for trial in trials if trial.status != "running"]


def best(trials: list[TrialRecord], direction: str) -> TrialRecord | None:
    """The completed trial with the best score, the first of equals; None where there is none.

    Args:
        trials: any.
        direction: "max" or "min".
    """
    completed = [trial for trial in trials if trial.status == "completed"]
    sign = -1 if direction == "max" else 1
    return min(completed, key=lambda trial: sign * trial.score, default=None)


def write_table(path: Path, trials: list[TrialRecord], folders: list[str]) -> None:
    """Write a row a trial: number, status, score, the space's dimensions, metrics, folder, reason.

    Args:
        path: CSV file.
        trials: the rows.
        folders: names of those of the trials' runs; empty where a trial has none.
    """
    values = list(dict.fromkeys(name for trial in trials for name in trial.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", "score", *values, *metrics, "runs", "reason"])
    for trial, folder in zip(trials, folders, strict=True):
        row = [trial.name, trial.status, trial.score]
        row += [trial.values.get(name) for name in values]
        row += [trial.metrics.get(name) for name in metrics]
        writer.writerow([*row, folder, trial.reason])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())


def epochs_done(folder: Path) -> str:
    """How far the trainings of a trial have come, in words.

    Args:
        folder: of its runs.
    """
    kinds = [("prior", path) for path in folder.glob("prior-*")] + [("vqvae", folder / "vqvae")]
    for kind, path in kinds:
        # A prior of codes that are no more may go at any moment.
        with contextlib.suppress(FileNotFoundError):
            lines = Run(path).history_path.read_text().splitlines()
            return f"{kind}, epoch {len(lines) - 1}"
    return "starting"
