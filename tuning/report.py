"""What a search found: a table, the chosen configuration, figures, and a sentence."""

import contextlib
import csv
import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from brainslices.errors import InputError
from brainslices.runs.json_files import write_json
from brainslices.runs.run import Run
from brainslices.visualization.figures import BLUE, INK, ORANGE, figure_panels
from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import TrialRecord, best, finished, read_trials, write_table
from tuning.trial import configuration, folder_of

__all__ = ["best_of_each_size", "pareto_front", "describe_best", "write_report"]

GREY, GREEN = "#b5b5b5", "#3f8f5b"
# Rates that a trial may tell, the truest first, and their names.
RATES = {
    "bits_per_pixel_prior": "bits per pixel under the prior",
    "bits_per_pixel_order_0": "bits per pixel, order-0 entropy",
}


def write_report(out: Path, config: SearchConfig) -> str:
    """Write `trials.csv`, `best_config.json` and the figures of a search that has ended.

    Args:
        out: the search's folder.
        config: the search.

    Returns:
        What was found, in words.

    Raises:
        InputError: if no trial was completed.
    """
    out, trials = Path(out), read_trials(out)
    folders = [
        folder_of(out, config, trial.values).name if trial.status == "completed" else ""
        for trial in trials
    ]
    write_table(out / "trials.csv", trials, folders)
    winner = best(trials, OBJECTIVES[config.objective])
    if winner is None:
        reasons = sorted({trial.reason for trial in finished(trials)})
        raise InputError(
            f"All {len(trials)} trials of {out} failed: {'; '.join(reasons) or 'none has ended'}. "
            f"{out / 'trials.csv'} lists them. Mend the cause and search into a new --out."
        )
    model, training = configuration(config, winner.values)
    parts = {"model": dataclasses.asdict(model), "training": dataclasses.asdict(training)}
    write_json(out / "best_config.json", parts)
    completed = [trial for trial in trials if trial.status == "completed"]
    models = [configuration(config, trial.values)[0] for trial in completed]
    sizes = [model.num_embeddings for model in models]
    _draw_sizes(out / "figures" / "codebook.png", completed, models, winner, config)
    _draw_plane(out / "figures" / "rate_distortion.png", completed, models, winner, config)
    kept = [folder_of(out, config, trial.values) for trial in completed]
    _draw_learning(out / "figures" / "learning_curves.png", kept, sizes, completed.index(winner))
    failed = len(finished(trials)) - len(completed)
    counts = f"{len(completed)} trials completed, {failed} failed."
    if len(finished(trials)) < config.trials:
        counts += f" The space has no more than these: {config.trials} were asked for."
    return f"{counts} {describe_best(completed, sizes, config)}"


def pareto_front(rates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which points no other one beats: lower rate and higher score, one of them strictly.

    Args:
        rates: float array of shape (n,), less is better.
        scores: float array of shape (n,), more is better.

    Returns:
        int array, the rows of the front by rising rate.
    """
    rates, scores = np.asarray(rates), np.asarray(scores)
    front, highest = [], -np.inf
    for row in np.lexsort((-scores, rates)):
        if scores[row] > highest:
            front.append(row)
            highest = scores[row]
    return np.array(front, int)


def best_of_each_size(
    trials: list[TrialRecord], sizes: list[int], direction: str
) -> dict[int, TrialRecord]:
    """Codebook size -> the best completed trial with that many codes, by rising size."""
    found = {}
    for size in sorted(set(sizes)):
        of_size = [trial for trial, each in zip(trials, sizes, strict=True) if each == size]
        found[size] = best(of_size, direction)
    return found


def describe_best(trials: list[TrialRecord], sizes: list[int], config: SearchConfig) -> str:
    """Which codebook size was chosen, and why: beside the next smaller and larger ones tried.

    Args:
        trials: completed ones.
        sizes: codebook size of each.
        config: the search.
    """
    of_size = best_of_each_size(trials, sizes, OBJECTIVES[config.objective])
    winner = best(list(of_size.values()), OBJECTIVES[config.objective])
    order = list(of_size)
    chosen = next(size for size in order if of_size[size] is winner)
    known = {words.partition("=")[0] for words in config.fix} | {"num_embeddings"}
    others = {name: value for name, value in winner.values.items() if name not in known}
    values = ", ".join(f"{name} {value}" for name, value in others.items()) or "nothing else varied"
    words = [
        f"A codebook of {chosen} codes ({values}) is best by {config.objective}, "
        f"{winner.score:.4f}: {_told(winner)}."
    ]
    place = order.index(chosen)
    for size in [*order[max(0, place - 1) : place], *order[place + 1 : place + 2]]:
        other = of_size[size]
        words.append(f"With {size} codes: {_told(other)}, {other.score:.4f}.")
    if config.objective == "val_rate_distortion":
        words.append(f"A bit per pixel was weighed as {config.rate_weight:g} of ssim_foreground.")
    else:
        words.append("What the codes cost was not weighed, which favours many codes.")
    return " ".join(words)


def _told(trial):
    name = _rate_name([trial])
    ssim = trial.metrics["val_ssim_foreground"]
    return f"ssim_foreground {ssim:.4f} at {trial.metrics[name]:.4f} {RATES[name]}"


def _rate_name(trials):
    return next(name for name in RATES if all(name in trial.metrics for trial in trials))


def _draw_sizes(path, trials, models, winner, config):
    """Score, distortion and rate by codebook size; a line through the best of each size."""
    rate, direction = _rate_name(trials), OBJECTIVES[config.objective]
    shown = {config.objective: config.objective, "val_ssim_foreground": "ssim_foreground"}
    shown[rate] = RATES[rate]
    sizes = sorted({model.num_embeddings for model in models})
    with figure_panels(path, 1, len(shown), inches=(3.6, 3.0)) as panels:
        for panel, (name, title) in zip(panels, shown.items(), strict=True):
            for rows, style in _by_downsampling(models):
                group = [trials[row] for row in rows]
                of_group = [models[row].num_embeddings for row in rows]
                faint = {key: style[key] for key in ("color", "marker")}
                values = [trial.metrics[name] for trial in group]
                panel.scatter(of_group, values, s=20, alpha=0.35, **faint)
                bests = best_of_each_size(group, of_group, direction)
                panel.plot([*bests], [each.metrics[name] for each in bests.values()], **style)
            chosen = models[trials.index(winner)].num_embeddings
            panel.scatter([chosen], [winner.metrics[name]], **_ring(), zorder=3)
            panel.set_title(title)
            panel.set_xlabel("codes in the codebook")
            panel.set_xscale("log", base=2)
            _mark_sizes(panel.xaxis, sizes)
        panels[0].legend(title="downsampling")


def _by_downsampling(models):
    """Rows of the models of each downsampling there is, with the look of their line."""
    looks = {8: (BLUE, "o"), 4: (GREEN, "^")}
    for downsampling in sorted({model.downsampling for model in models}, reverse=True):
        rows = [row for row, model in enumerate(models) if model.downsampling == downsampling]
        colour, marker = looks[downsampling]
        style = {"color": colour, "marker": marker, "markersize": 5}
        yield rows, {**style, "label": str(downsampling)}


def _mark_sizes(axis, sizes):
    axis.set_major_formatter(ScalarFormatter())
    axis.set_ticks(sizes, labels=[str(size) for size in sizes])
    axis.set_minor_locator(NullLocator())


def _ring():
    return {"s": 110, "facecolors": "none", "edgecolors": ORANGE, "linewidths": 2}


def _draw_plane(path, trials, models, winner, config):
    """ssim_foreground against the rate; the front, the chosen point, and the points as good."""
    name = _rate_name(trials)
    rates = np.array([trial.metrics[name] for trial in trials])
    scores = np.array([trial.metrics["val_ssim_foreground"] for trial in trials])
    front, chosen = pareto_front(rates, scores), trials.index(winner)
    with figure_panels(path, 1, 1, inches=(6.2, 4.2)) as (panel,):
        panel.plot(rates[front], scores[front], color=GREY, label="Pareto front", zorder=1)
        for rows, style in _by_downsampling(models):
            label = f"downsampling {style.pop('label')}"
            panel.plot(rates[rows], scores[rows], linestyle="none", label=label, **style)
        for rate, score, model in zip(rates, scores, models, strict=True):
            offset = {"xytext": (5, -10), "textcoords": "offset points"}
            told = str(model.num_embeddings)
            panel.annotate(told, (rate, score), fontsize=7, color=INK, **offset)
        panel.scatter(rates[chosen], scores[chosen], **_ring(), label="chosen", zorder=3)
        if config.objective == "val_rate_distortion":
            _draw_as_good(panel, rates, scores, chosen, config.rate_weight)
        panel.set_xlabel(RATES[name])
        panel.set_ylabel("ssim_foreground, validation")
        panel.set_title("Rate and distortion; numbers are codebook sizes")
        panel.legend(loc="lower right")


def _draw_as_good(panel, rates, scores, chosen, rate_weight):
    """The line of all points with the chosen one's score; what lies above it would be better."""
    ends = np.array([rates.min(), rates.max()])
    line = scores[chosen] + rate_weight * (ends - rates[chosen])
    told = f"as good, a bit weighed as {rate_weight:g}"
    panel.plot(ends, line, color=ORANGE, linestyle=":", label=told, zorder=1)
    low, high = scores.min(), scores.max()
    margin = 0.08 * (high - low) + 1e-3
    panel.set_ylim(low - margin, high + margin)


def _draw_learning(path, folders, sizes, winner):
    """Curves of both stages, coloured by codebook size; the chosen trial's is drawn wider."""
    columns = {
        "ssim_foreground, validation": ("vqvae", "val_ssim_foreground"),
        "nats per code, validation": ("prior-*", "val_nats_per_code"),
    }
    curves = {
        title: [_history(folder, pattern, column) for folder in folders]
        for title, (pattern, column) in columns.items()
    }
    curves = {title: each for title, each in curves.items() if any(map(len, each))}
    if not curves:
        return
    norm = LogNorm(min(sizes), max(*sizes, min(sizes) + 1))
    with figure_panels(path, 1, len(curves), inches=(4.8, 3.4)) as panels:
        for panel, (title, lines) in zip(panels, curves.items(), strict=True):
            for number, (line, size) in enumerate(zip(lines, sizes, strict=True)):
                width, marker = (3.0, "o") if number == winner else (1.2, ".")
                label = str(size) if sizes.index(size) == number else None
                colour = _colour(norm(size))
                epochs = np.arange(1, len(line) + 1)
                panel.plot(epochs, line, color=colour, lw=width, marker=marker, label=label)
            panel.set_title(title)
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        handles, labels = panels[0].get_legend_handles_labels()
        order = np.argsort([int(label) for label in labels])
        panels[0].legend(
            [handles[row] for row in order], [labels[row] for row in order], title="codes", ncols=2
        )


def _colour(share):
    return matplotlib.colormaps["viridis"](0.92 * float(share))


def _history(folder, pattern, column):
    """Values of a column of the first training that fits the pattern; none if there is none."""
    for path in sorted(folder.glob(pattern)):
        if Run(path).history_path.is_file():
            # A file cut short costs its curve, not the report.
            damage = contextlib.suppress(ValueError, KeyError, TypeError)
            with damage, Run(path).history_path.open() as file:
                return [float(row[column]) for row in csv.DictReader(file)]
    return []
