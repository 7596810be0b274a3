"""Result of a search: a table, the best configuration, figures, and a summary."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, NullLocator

from brainslices.config import from_dict
from brainslices.errors import InputError
from brainslices.report.collect import Search
from brainslices.runs.json_files import write_json
from brainslices.runs.run import Run
from brainslices.types import PathLike
from brainslices.visualization.figures import BLUE, GREY, INK, ORANGE, figure_panels
from tuning.config import METRICS, OBJECTIVES, RATES, SearchConfig
from tuning.final_scores import collect_finalists, describe_finalists, draw_finalists
from tuning.records import (
    TrialRecord,
    best_trial,
    finished_trials,
    format_value,
    rank_configurations,
    read_trials,
    split_finals,
    write_table,
)
from tuning.resume import DESCRIPTION_FILE, read_description
from tuning.trial import trial_config, trial_folder
from vqvae.config import VQVAEConfig

__all__ = ["SearchResult", "describe_best", "pareto_front", "read_search", "write_report"]

QUALITY = "val_ssim_foreground"
GREEN = "#3f8f5b"
# Downsampling -> color and marker.
STYLES = {8: (BLUE, "o"), 4: (GREEN, "^")}
OTHER_STYLE = (INK, "s")
RING = {"s": 110, "facecolors": "none", "edgecolors": ORANGE, "linewidths": 2, "zorder": 3}


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The completed trials of a search, at least one.

    Attributes:
        config: the search.
        trials: the completed trials.
        models: configuration of each trial's VQ-VAE.
    """

    config: SearchConfig
    trials: Sequence[TrialRecord]
    models: Sequence[VQVAEConfig]

    @property
    def sizes(self) -> list[int]:
        """Codebook size of each trial."""
        return [model.num_embeddings for model in self.models]

    @property
    def best(self) -> TrialRecord:
        """The trial with the best score."""
        best = best_trial(self.trials, OBJECTIVES[self.config.objective])
        return cast(TrialRecord, best)  # there is at least one

    @property
    def rate(self) -> str:
        """Name of the best rate metric that all trials have."""
        return next(name for name in RATES if all(name in trial.metrics for trial in self.trials))

    def metric(self, name: str) -> np.ndarray:
        """Values of a metric, one for each trial."""
        return np.array([trial.metrics[name] for trial in self.trials])

    def group_by(self, field: str) -> dict[int, "SearchResult"]:
        """Value of a field of the model -> the trials that have it, by ascending value."""
        values = [getattr(model, field) for model in self.models]
        groups = {}
        for value in sorted(set(values)):
            rows = [row for row, other in enumerate(values) if other == value]
            trials, models = [self.trials[row] for row in rows], [self.models[row] for row in rows]
            groups[value] = SearchResult(self.config, trials, models)
        return groups

    def best_by_size(self) -> dict[int, TrialRecord]:
        """Codebook size -> the best trial of that size, by ascending size."""
        return {size: group.best for size, group in self.group_by("num_embeddings").items()}


def write_report(out: PathLike, config: SearchConfig) -> str:
    """Write the tables, `best_config.json` and the figures of a finished search.

    Args:
        out: search folder.
        config: the search.

    Returns:
        Summary of the result, one paragraph.

    Raises:
        InputError: if no trial completed.
    """
    out, records = Path(out), read_trials(out)
    trials, finals = split_finals(records)
    _write_table(out / "trials.csv", config, trials)
    completed = [trial for trial in trials if trial.status == "completed"]
    finished = finished_trials(trials)
    if not completed:
        reasons = "; ".join(sorted({trial.reason for trial in finished})) or "none has finished"
        raise InputError(
            f"All {len(trials)} trials of {out} failed: {reasons}. "
            f"{out / 'trials.csv'} lists them. Fix the cause and search into a new --out."
        )
    models = [trial_config(config, trial.values)[0] for trial in completed]
    result, finalists = SearchResult(config, completed, models), collect_finalists(config, records)
    best = finalists[0].trial if finalists else result.best
    model, training = trial_config(config, best.values)
    best_config = {"model": dataclasses.asdict(model), "training": dataclasses.asdict(training)}
    write_json(out / "best_config.json", best_config)
    _draw_sizes(out / "figures" / "codebook.png", result)
    _draw_rate_distortion(out / "figures" / "rate_distortion.png", result)
    folders = [trial_folder(out, config, trial.values) for trial in completed]
    _draw_learning_curves(out / "figures" / "learning_curves.png", result, folders)
    summary = f"{len(completed)} trials completed, {len(finished) - len(completed)} failed."
    if len(finished) < config.trials:
        summary += f" The space has no more than these; {config.trials} were requested."
    summary += f" {describe_best(result)}"
    return f"{summary} {_report_finals(out, config, trials, finals, finalists)}"


def _report_finals(out, config, trials, finals, finalists):
    """Write the table and the figure of the final trainings; return what they showed."""
    if not finals:
        return (
            "Short trials favour configurations that learn fast: --finalists 3 trains the best "
            "three in full before one is chosen."
        )
    _write_table(out / "finalists.csv", config, finals)
    parts = []
    if finalists:
        draw_finalists(out / "figures" / "finalists.png", config, finalists)
        parts.append(describe_finalists(config, finalists))
    configurations = len(rank_configurations(trials, OBJECTIVES[config.objective]))
    if configurations < config.finalists:
        parts.append(
            f"{config.finalists} finalists were requested, but only {configurations} "
            "configurations completed a trial."
        )
    if failed := sum(final.status == "failed" for final in finals):
        table = out / "finalists.csv"
        parts.append(f"{failed} of {len(finals)} final trainings failed: {table} has the reasons.")
    return " ".join(parts)


def _write_table(path, config, trials):
    """Write a table of trials with the folders of their runs, relative to `runs`."""
    runs = path.parent / "runs"
    names = [
        str(trial_folder(path.parent, config, trial.run_values).relative_to(runs))
        if trial.status == "completed"
        else ""
        for trial in trials
    ]
    write_table(path, trials, names)


def read_search(out: PathLike) -> Search:
    """Read a search folder, also of a search that is running, for an HTML report.

    Args:
        out: search folder.

    Raises:
        InputError: if the folder is no search, or a file of it is corrupt.
    """
    out, search = Path(out), read_description(out)["search"]
    objective, records = search["objective"], read_trials(out)
    trials, finals = split_finals(records)
    finalists, conclusion = [], ""
    if any(final.score is not None for final in finals):
        config = from_dict(SearchConfig, search, out / DESCRIPTION_FILE)
        finalists = collect_finalists(config, records)
        conclusion = describe_finalists(config, finalists)
    completed = [trial for trial in trials if trial.status == "completed"]
    shared = [name for name in METRICS if all(name in trial.metrics for trial in completed)]
    rate = next((name for name in RATES if completed and name in shared), "")
    names = (rate, QUALITY) if rate else ()
    points = [np.array([trial.metrics[name] for trial in completed]) for name in names]
    chosen = finalists[0].trial if finalists else best_trial(trials, OBJECTIVES[objective])
    return Search(
        path=out,
        objective=(objective, OBJECTIVES[objective]),
        dimensions=list(dict.fromkeys(name for trial in trials for name in trial.values)),
        metrics=[name for name in METRICS if any(name in trial.metrics for trial in completed)],
        rows=[
            {"trial": trial.name, "status": trial.status, "score": trial.score}
            | {**trial.values, **trial.metrics, "reason": trial.reason}
            for trial in trials
        ],
        rate=rate,
        best=chosen.name if chosen else "",
        front=[completed[row].name for row in pareto_front(*points)] if points else [],
        finalists=[
            {"trial": one.trial.name, "score": one.score, "scores": [*one.scores]}
            | one.trial.values
            for one in finalists
        ],
        conclusion=conclusion,
    )


def pareto_front(rates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Find the points that no other one dominates by a lower rate or a higher score.

    Args:
        rates: float array of shape (n,), less is better.
        scores: float array of shape (n,), more is better.

    Returns:
        int array, indices of the front by ascending rate.

    Example:
        >>> pareto_front([0.1, 0.2, 0.2, 0.3], [0.5, 0.8, 0.7, 0.6])
        array([0, 1])
    """
    rates, scores = np.asarray(rates), np.asarray(scores)
    front, highest = [], -np.inf
    for row in np.lexsort((-scores, rates)):
        if scores[row] > highest:
            front.append(row)
            highest = scores[row]
    return np.array(front, int)


def describe_best(result: SearchResult) -> str:
    """Describe the best configuration, and the next smaller and larger codebooks tried.

    Args:
        result: the completed trials.

    Returns:
        One paragraph.
    """
    config, best = result.config, result.best
    by_size = result.best_by_size()
    sizes = list(by_size)
    index = list(by_size.values()).index(best)
    hidden = config.fixed_names | {"num_embeddings"}
    values = [
        f"{name} {format_value(value)}" for name, value in best.values.items() if name not in hidden
    ]

    def metrics(trial):
        ssim, rate = trial.metrics["val_ssim_foreground"], trial.metrics[result.rate]
        return f"ssim_foreground {ssim:.4f} at {rate:.4f} {RATES[result.rate]}"

    parts = [
        f"A codebook of {sizes[index]} codes ({', '.join(values) or 'nothing else varied'}) is "
        f"best by {config.objective}, {best.score:.4f}: {metrics(best)}."
    ]
    for size in [*sizes[max(0, index - 1) : index], *sizes[index + 1 : index + 2]]:
        parts.append(f"With {size} codes: {metrics(by_size[size])}, {by_size[size].score:.4f}.")
    if config.objective == "val_rate_distortion":
        parts.append(f"One bit per pixel counts as {config.rate_weight:g} of ssim_foreground.")
    else:
        parts.append("The objective ignores the rate, which favours many codes.")
    return " ".join(parts)


def _style(downsampling):
    color, marker = STYLES.get(downsampling, OTHER_STYLE)
    return {"color": color, "marker": marker}


def _draw_sizes(path, result):
    """Draw score, distortion and rate by codebook size, a line through the best of each size."""
    titles = {result.config.objective: result.config.objective}
    titles |= {"val_ssim_foreground": "ssim_foreground", result.rate: RATES[result.rate]}
    ticks = sorted(set(result.sizes))
    best_size = result.sizes[result.trials.index(result.best)]
    with figure_panels(path, 1, len(titles), inches=(3.6, 3.0)) as panels:
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            for downsampling, group in result.group_by("downsampling").items():
                style = _style(downsampling)
                panel.scatter(group.sizes, group.metric(name), s=20, alpha=0.35, **style)
                line = {size: trial.metrics[name] for size, trial in group.best_by_size().items()}
                panel.plot([*line], [*line.values()], markersize=5, label=downsampling, **style)
            panel.scatter(best_size, result.best.metrics[name], **RING)
            panel.set(title=title, xlabel="codes in the codebook")
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks, labels=[str(size) for size in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
        panels[0].legend(title="downsampling")


def _draw_rate_distortion(path, result):
    """Draw ssim_foreground by rate, the Pareto front, and the line of the best score."""
    name, best = result.rate, result.best
    rates, scores = result.metric(name), result.metric("val_ssim_foreground")
    front = pareto_front(rates, scores)
    best_point = (best.metrics[name], best.metrics["val_ssim_foreground"])
    with figure_panels(path, 1, 1, inches=(6.2, 4.2)) as (panel,):
        panel.plot(rates[front], scores[front], color=GREY, label="Pareto front", zorder=1)
        for downsampling, group in result.group_by("downsampling").items():
            points = group.metric(name), group.metric("val_ssim_foreground")
            label = f"downsampling {downsampling}"
            panel.plot(*points, linestyle="none", label=label, **_style(downsampling))
        for *point, size in zip(rates, scores, result.sizes, strict=True):
            offset = {"xytext": (5, -10), "textcoords": "offset points"}
            panel.annotate(str(size), point, fontsize=7, color=INK, **offset)
        panel.scatter(*best_point, **RING, label="best")
        if result.config.objective == "val_rate_distortion":
            weight, ends = result.config.rate_weight, np.array([rates.min(), rates.max()])
            line = best_point[1] + weight * (ends - best_point[0])
            label = f"equal score, rate weight {weight:g}"
            panel.plot(ends, line, color=ORANGE, linestyle=":", label=label, zorder=1)
            # The line may be steep: the points decide the limits.
            margin = 0.08 * np.ptp(scores) + 1e-3
            panel.set_ylim(scores.min() - margin, scores.max() + margin)
        panel.set(xlabel=RATES[name], ylabel="ssim_foreground, validation")
        panel.set_title("Rate and distortion; numbers are codebook sizes")
        panel.legend(loc="lower right")


def _draw_learning_curves(path, result, folders):
    """Draw the training curves of both stages, colored by codebook size, the best one wider."""
    columns = {
        "ssim_foreground, validation": ("vqvae", "val_ssim_foreground"),
        "nats per code, validation": ("prior-*", "val_nats_per_code"),
    }
    curves = {
        title: [_read_history(folder, pattern, column) for folder in folders]
        for title, (pattern, column) in columns.items()
    }
    curves = {title: lines for title, lines in curves.items() if any(map(len, lines))}
    if not curves:
        return
    sizes, colors = result.sizes, matplotlib.colormaps["viridis"]
    norm = LogNorm(min(sizes), max(*sizes, min(sizes) + 1))
    with figure_panels(path, 1, len(curves), inches=(4.8, 3.4)) as panels:
        for panel, (title, lines) in zip(panels, curves.items(), strict=True):
            # By ascending size, so that the legend is in order.
            for row in np.argsort(sizes, kind="stable"):
                is_best, size = result.trials[row] is result.best, sizes[row]
                style = {"lw": 3.0, "marker": "o"} if is_best else {"lw": 1.2, "marker": "."}
                style["color"] = colors(0.92 * float(norm(size)))  # the last colors are too light
                style["label"] = str(size) if row == sizes.index(size) else None
                panel.plot(np.arange(1, len(lines[row]) + 1), lines[row], **style)
            panel.set(title=title, xlabel="epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[-1].legend(title="codes", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _read_history(folder, pattern, column):
    """Read a column of the first training that matches the pattern; empty if there is none."""
    for path in sorted(folder.glob(pattern)):
        # A corrupt file leaves out its curve, not the whole report.
        with contextlib.suppress(InputError, KeyError):
            return Run(path).read_history()[column]
    return []
