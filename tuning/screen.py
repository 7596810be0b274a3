"""The search on the terminal: a live table of trials, or a line for each when piped."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tqdm import tqdm

from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import TrialRecord, best, epochs_done, finished, read_trials

__all__ = ["shown"]

# Columns of metrics: name -> heading and format.
METRICS = {
    "val_ssim_foreground": ("ssim_foreground", ".4f"),
    "bits_per_pixel_prior": ("bits/pixel, prior", ".4f"),
    "bits_per_pixel_raw": ("raw", ".4f"),
    "seconds": ("seconds", ".0f"),
}
MOST_ROWS = 40


class _Screen:
    """Draws what the search's folder tells.

    Args:
        out: the search's folder.
        config: the search.
        folder_of: function from a trial's values to the folder of its runs.
        workers: how many trials run at a time.
    """

    def __init__(self, out: Path, config: SearchConfig, folder_of, workers: int):
        self.out, self.config = out, config
        self.folder_of, self.workers = folder_of, workers
        self.started, self.before = time.monotonic(), len(finished(read_trials(out)))
        self.told = {trial.name for trial in finished(read_trials(out))}

    def table(self) -> Table:
        """The trials so far."""
        trials = read_trials(self.out)
        winner = best(trials, OBJECTIVES[self.config.objective])
        names = list(dict.fromkeys(name for trial in trials for name in trial.values))
        table = Table(title=self._headline(trials), title_justify="left", pad_edge=False)
        columns = ["trial", *names, *(heading for heading, _ in METRICS.values())]
        for heading in [*columns, self.config.objective]:
            table.add_column(heading, justify="right")
        table.add_column("status", max_width=40, overflow="fold")
        for trial in trials[-MOST_ROWS:]:
            style = "bold green" if trial is winner else "dim" if trial.status == "failed" else ""
            table.add_row(*self._cells(trial, names), style=style)
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
            return epochs_done(self.folder_of(trial.values))
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

    def tell_news(self) -> None:
        """Print a line for each trial that has ended since the last time."""
        trials = read_trials(self.out)
        for trial in finished(trials):
            if trial.name not in self.told:
                self.told.add(trial.name)
                values = " ".join(f"{name}={_short(value)}" for name, value in trial.values.items())
                score = self._status(trial) if trial.score is None else f"score {trial.score:.4f}"
                tqdm.write(f"trial {trial.name}: {values}: {score}. {self._headline(trials)}")


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def shown(out: Path, config: SearchConfig, folder_of, workers: int) -> Iterator:
    """Show a search while the block runs.

    Args:
        out: the search's folder.
        config: the search.
        folder_of: function from a trial's values to the folder of its runs.
        workers: how many trials run at a time.

    Yields:
        Function to call now and then, which brings the screen up to date.
    """
    screen = _Screen(Path(out), config, folder_of, workers)
    if not sys.stdout.isatty():
        yield screen.tell_news
        screen.tell_news()
        return
    with Live(screen.table(), console=Console(), auto_refresh=False) as live:
        yield lambda: live.update(screen.table(), refresh=True)
        live.update(screen.table(), refresh=True)
