"""Progress of a search: a live table on a terminal; when piped, lines as trials start and end."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from brainslices.errors import InputError
from brainslices.progress import print_lines
from tuning.config import OBJECTIVES, RATES, SearchConfig
from tuning.records import (
    best_trial,
    current_epoch,
    finished_trials,
    format_value,
    rank_configurations,
    read_trials,
    split_finals,
)
from tuning.trial import trial_folder

__all__ = ["SearchScreen", "live_table"]

# Heading of a column -> the metrics of which it shows the first that a trial has, and format.
METRIC_COLUMNS: dict[str, tuple[Sequence[str], str]] = {
    "ssim\nfg": (("val_ssim_foreground",), ".4f"),
    "bits/\npixel": ((*RATES,), ".4f"),
    "seconds": (("seconds",), ".0f"),
}
# Lines around the rows; rows shown even on a lower terminal.
FRAME_LINES, MIN_ROWS = 8, 3
# Width of the column of a dimension of the space, and of all other columns together.
DIMENSION_WIDTH, OTHER_WIDTH = 13, 54


class SearchScreen:
    """Shows what the folder `out` of the search `config` holds."""

    def __init__(self, out: Path, config: SearchConfig):
        self.out, self.config, self.started = out, config, time.monotonic()
        finished = finished_trials(read_trials(out))
        self.printed = {(trial.name, trial.status) for trial in finished}
        self.epochs_before = self._count_epochs(*map(len, split_finals(finished)))

    def table(self, size: ConsoleDimensions) -> Table:
        """Build a table of the last trials and the first dimensions that fit the terminal."""
        trials = read_trials(self.out)
        best = self._best(trials)
        values, fixed = trials[0].values if trials else {}, self.config.fixed_names
        names = [name for name in values if name not in fixed]
        names = names[: max(1, (size.width - OTHER_WIDTH) // DIMENSION_WIDTH)]
        table = Table(
            title=Text(self._headline(trials)),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            expand=True,
        )
        headings = [*names, *METRIC_COLUMNS, "score"]
        for heading in ["trial", *headings]:
            table.add_column(heading.replace("_", "\n"), justify="right", no_wrap=True)
        # Takes the remaining width; trials.csv has the whole reason of a failure.
        table.add_column("status", ratio=1, no_wrap=True)
        for trial in trials[-max(MIN_ROWS, size.height - FRAME_LINES) :]:
            cells = [trial.name, *(format_value(trial.values.get(name)) for name in names)]
            for metrics, spec in METRIC_COLUMNS.values():
                known = (trial.metrics[name] for name in metrics if name in trial.metrics)
                cells.append(next((format(value, spec) for value in known), ""))
            cells += ["" if trial.score is None else f"{trial.score:.4f}", self._status(trial)]
            if trial.final_seed is not None:
                cells[-1] = f"final, seed {trial.final_seed}: {cells[-1]}"
            style = "bold green" if trial is best else "dim" if trial.status == "failed" else ""
            # As `Text`: rich would read the brackets of a reason as markup.
            table.add_row(*map(Text, cells), style=style)
        return table

    def _status(self, trial):
        if trial.status == "running":
            with contextlib.suppress(InputError):  # an invalid configuration fails soon
                return current_epoch(trial_folder(self.out, self.config, trial.run_values))
            return "starting"
        return f"failed: {trial.reason}" if trial.reason else "done"

    def _best(self, trials):
        """The best final training, before there is one the best trial."""
        direction = OBJECTIVES[self.config.objective]
        searched, finals = split_finals(trials)
        return best_trial(finals, direction) or best_trial(searched, direction)

    def _count_epochs(self, trials, finals):
        """Epochs of both stages that some trials and final trainings take."""
        config = self.config
        has_prior = config.objective == "val_rate_distortion"
        epochs = config.epochs + has_prior * config.prior_epochs
        return trials * epochs + finals * (
            config.final_epochs + has_prior * config.final_prior_epochs
        )

    def _count_finals(self, trials):
        """Final trainings in all: those of an earlier selection, and those of the present one."""
        config = self.config
        searched, finals = split_finals(trials)
        if len(finished_trials(searched)) < config.trials:
            return max(len(finals), config.finalists * config.final_seeds)
        best = rank_configurations(searched, OBJECTIVES[config.objective])[: config.finalists]
        chosen = [trial.values for trial in best]
        earlier = [final for final in finals if final.values not in chosen]
        return len(earlier) + len(chosen) * config.final_seeds

    def _headline(self, trials):
        """The numbers of finished trials and final trainings, the best, and the time."""
        searched, finals = map(finished_trials, split_finals(trials))
        parts, best = [f"{len(searched)} of {self.config.trials} trials"], self._best(trials)
        final_total = self._count_finals(trials)
        if final_total:
            parts.append(f"{len(finals)} of {final_total} final trainings")
        if best:
            parts.append(f"best {self.config.objective} {best.score:.4f} (trial {best.name})")
        elapsed = time.monotonic() - self.started
        parts.append(f"{tqdm.format_interval(elapsed)} elapsed")
        epochs = self._count_epochs(len(searched), len(finals))
        done = epochs - self.epochs_before
        left = self._count_epochs(self.config.trials, final_total) - epochs
        if done > 0 and left > 0:
            parts.append(f"{tqdm.format_interval(elapsed / done * left)} left")
        return ", ".join(parts)

    def print_changes(self) -> None:
        """Print a line for each trial that has started or finished since the last call."""
        trials = read_trials(self.out)
        headline = self._headline(trials)
        for trial in trials:
            if (trial.name, trial.status) in self.printed:
                continue
            self.printed.add((trial.name, trial.status))
            values = " ".join(
                f"{name}={format_value(value)}" for name, value in trial.values.items()
            )
            if trial.final_seed is not None:
                values += f", final training, seed {trial.final_seed}"
            if trial.status == "running":
                print_lines(f"trial {trial.name}: {values}: started")
                continue
            result = self._status(trial) if trial.score is None else f"score {trial.score:.4f}"
            print_lines(f"trial {trial.name}: {values}: {result}. {headline}")


@contextlib.contextmanager
def live_table(out: Path, config: SearchConfig) -> Iterator[Callable[[], None]]:
    """Show a search while the block runs; yields the function that refreshes the display."""
    screen, console = SearchScreen(Path(out), config), Console()
    if not sys.stdout.isatty():
        yield screen.print_changes
        screen.print_changes()
        return
    with Live(screen.table(console.size), console=console, auto_refresh=False) as live:
        yield lambda: live.update(screen.table(console.size), refresh=True)
        live.update(screen.table(console.size), refresh=True)
