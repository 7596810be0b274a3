"""What a search has tried so far, read from its folder; no process of the search is asked."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from brainslices.runs import Run, atomic_path, read_json

__all__ = ["TRIALS", "TrialRecord", "best", "finished", "read_trials", "write_table"]

# keras-tuner's folder below the search's.
TRIALS = "trials"
STATUS = {"RUNNING": "running", "COMPLETED": "completed"}


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        name: its number, as keras-tuner writes it.
        status: "running" (or interrupted, where no search runs), "completed" or "failed".
        values: name -> value of the space's dimensions.
        metrics: name -> value, as `tuning.trial.METRICS`; empty unless completed.
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
    return [_read(path) for path in sorted((Path(out) / TRIALS).glob("trial_*/trial.json"))]


def _read(path):
    told = read_json(path)
    status = STATUS.get(told["status"], "failed")
    observed = told["metrics"]["metrics"] if status == "completed" else {}
    metrics = {name: each["observations"][-1]["value"][-1] for name, each in observed.items()}
    reason = (told["message"] or "").strip().rpartition("\n")[2].partition(": ")[2]
    values = told["hyperparameters"]["values"]
    return TrialRecord(
        told["trial_id"],
        status,
        {name: value for name, value in values.items() if not name.startswith("tuner/")},
        metrics,
        told["score"] if status == "completed" else None,
        (reason or "the score is not a number") if status == "failed" else "",
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


def write_table(path: Path, trials: list[TrialRecord], folders: list[Path]) -> None:
    """Write a row a trial: number, status, score, the space's dimensions, metrics, folder, reason.

    Args:
        path: CSV file.
        trials: the rows.
        folders: of the trials' runs.
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
        writer.writerow([*row, folder.name, trial.reason])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())


def epochs_done(folder: Path) -> str:
    """How far the trainings of a trial have come, in words.

    Args:
        folder: of its runs.
    """
    priors = sorted(folder.glob("prior-*"), key=lambda path: path.stat().st_mtime)
    for kind, path in [("prior", path) for path in priors[-1:]] + [("vqvae", folder / "vqvae")]:
        history = Run(path).history_path
        if history.is_file():
            return f"{kind}, epoch {len(history.read_text().splitlines()) - 1}"
    return "starting"
