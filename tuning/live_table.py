"""The search on the terminal: a live table of trials, or a line for each when piped."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from brainslices.errors import InputError
from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import TrialRecord, best, epochs_done, finished, read_trials

__all__ = ["shown"]

# Columns of metrics: name -> heading and format.
METRICS = {
    "val_ssim_foreground": ("ssim fg", ".4f"),
    "bits_per_pixel_prior": ("bits/pixel", ".4f"),
    "seconds": ("seconds", ".0f"),
}
# Lines of the terminal that the table's rows cannot have.
FRAME_LINES, LEAST_ROWS = 8, 3
# Width of all columns but the space's dimensions.
OTHER_COLUMNS = 56


class _Screen:
    """Draws what the search's folder tells.

    Args:
        out: the search's folder.
        config: the search.
        folder_of: function from a trial's values to the folder of its runs.
    """

    def __init__(self, out: Path, config: SearchConfig, folder_of):
        self.out, self.config, self.folder_of = out, config, folder_of
        self.started, self.before = time.monotonic(), len(finished(read_trials(out)))
        self.told = {trial.name for trial in finished(read_trials(out))}

    def table(self, size: ConsoleDimensions) -> Table:
        """The trials so far.

        Args:
            size: of the terminal. Where its lines do not hold all trials, the last are shown that
                are under way, and the best; of the space's dimensions as many as its width holds.
        """
        trials = read_trials(self.out)
        winner = best(trials, OBJECTIVES[self.config.objective])
        fixed = {words.partition("=")[0] for words in self.config.fix}
        names = dict.fromkeys(name for trial in trials for name in trial.values)
        names = [name for name in names if name not in fixed]
        while len(names) > 1 and sum(map(_width, names)) > size.width - OTHER_COLUMNS:
            names.pop()
        table = Table(
            title=Text(self._headline(trials)),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            expand=True,
        )
        columns = ["trial", *names, *(heading for heading, _ in METRICS.values())]
        for heading in [*columns, "score"]:
            table.add_column(_heading(heading), justify="right", no_wrap=True)
        # What is left of the width; the whole of a reason is in trials.csv.
        table.add_column("status", ratio=1, no_wrap=True)
        rows = max(LEAST_ROWS, size.height - FRAME_LINES)
        for trial in trials:
            if trial not in trials[-rows:] and trial is not winner:
                continue
            style = "bold green" if trial is winner else "dim" if trial.status == "failed" else ""
            # As text: a reason may hold brackets, which rich would take for its own marks.
            table.add_row(*map(Text, self._cells(trial, names)), style=style)
        return table

    def _cells(self, trial, names):
        values = [_short(trial.values.get(name)) for name in names]
        metrics = [
            format(trial.metrics[name], style) if name in trial.metrics else ""
            for name, (_, style) in METRICS.items()
        ]
        score = "" if trial.score is None else f"{trial.score:.4f}"
        return trial.name, *values, *metrics, score, self._status(trial)

    def _status(self, trial: TrialRecord) -> str:
        if trial.status == "running":
            with contextlib.suppress(InputError):  # values that make no configuration fail soon
                return epochs_done(self.folder_of(trial.values))
            return "starting"
        return f"failed: {trial.reason}" if trial.reason else "done"

    def _headline(self, trials):
        ended = len(finished(trials))
        words = [f"{ended} of {self.config.trials} trials"]
        winner = best(trials, OBJECTIVES[self.config.objective])
        if winner:
            words.append(f"best {self.config.objective} {winner.score:.4f} (trial {winner.name})")
        now = time.monotonic() - self.started
        words.append(f"{tqdm.format_interval(now)} so far")
        if ended > self.before and ended < self.config.trials:
            left = now / (ended - self.before) * (self.config.trials - ended)
            words.append(f"{tqdm.format_interval(left)} left")
        return ", ".join(words)

    def print_finished_trials(self) -> None:
        """Print a line for each trial that has ended since the last time."""
        trials = read_trials(self.out)
        for trial in finished(trials):
            if trial.name not in self.told:
                self.told.add(trial.name)
                values = " ".join(f"{name}={_short(value)}" for name, value in trial.values.items())
                score = self._status(trial) if trial.score is None else f"score {trial.score:.4f}"
                tqdm.write(f"trial {trial.name}: {values}: {score}. {self._headline(trials)}")


def _heading(name):
    """A word a line, so that the column stays narrow."""
    return Text(name.replace("_", "\n").replace("/", "/\n"))


def _width(name):
    """Of a dimension's column, with the gap beside it."""
    return max(len(word) for word in name.split("_")) + 3


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def shown(out: Path, config: SearchConfig, folder_of) -> Iterator:
    """Show a search while the block runs.

    Args:
        out: the search's folder.
        config: the search.
        folder_of: function from a trial's values to the folder of its runs.

    Yields:
        Function to call now and then, which brings the screen up to date.
    """
    screen = _Screen(Path(out), config, folder_of)
    if not sys.stdout.isatty():
        yield screen.print_finished_trials
        screen.print_finished_trials()
        return
    console = Console()
    with Live(screen.table(console.size), console=console, auto_refresh=False) as live:
        yield lambda: live.update(screen.table(console.size), refresh=True)
        live.update(screen.table(console.size), refresh=True)
