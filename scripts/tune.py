r"""Search for a codebook, and what else the space varies, by rate and distortion.

    python scripts/tune.py --data data/oasis --out outputs/search --trials 12
    python scripts/tune.py --data data/oasis --out outputs/search --workers 2 --space full \
        --fix downsampling=8 embedding_dim=32

Writes OUT/trials.csv, OUT/best_config.json (for train_vqvae.py --config), OUT/figures/, the
trials' runs in OUT/runs/ and, of final trainings, OUT/finalists.csv. Rerun the same command to
resume a stopped search; with more --trials it adds some, and with --finalists 3 it trains the best
three in full and chooses among them. For several machines see docs/choosing_the_codebook.md.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.config import check_field
from brainslices.progress import print_lines
from brainslices.resources import check_needed
from tuning.config import SearchConfig

# The least that a process with a backend takes, and the runs of a trial.
WORKER_BYTES, TRIAL_BYTES = 3e8, 1e6


@dataclass(frozen=True)
class Arguments:
    """Search for a configuration of the VQ-VAE by rate and distortion, or resume a search."""

    data: Path
    """Slice archive made by prepare_data.py."""
    out: Path
    """Folder of the search, new or to resume."""
    search: SearchConfig
    workers: int = 1
    """Number of trials that run at the same time, each on a GPU of its own if there are several."""
    report: bool = False
    """Write OUT/report.html when the search has ended: table, plane and parallel coordinates."""

    def __post_init__(self):
        check_field(self, "workers", lambda value: value >= 1, "at least 1")
        check_needed(f"workers={self.workers}", memory=self.workers * WORKER_BYTES)
        search = self.search
        trials = search.trials + search.finalists * search.final_seeds
        what = f"trials={search.trials}"
        if search.finalists:
            what += f", finalists={search.finalists}, final_seeds={search.final_seeds}"
        check_needed(what, disk=trials * TRIAL_BYTES, folder=self.out)


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, search, and print the result."""
    arguments = cli.parse(Arguments, argv)

    cli.share_gpu_memory()  # among trials
    with cli.suppress_backend_logs():
        from tuning.search import ENVIRONMENT, join, search

    is_distributed = any(name in os.environ for name in ENVIRONMENT)
    run = join if is_distributed else search
    cli.print_wrapped(run(arguments.data, arguments.out, arguments.search, arguments.workers))
    if not is_distributed or "chief" in os.environ[ENVIRONMENT[0]]:  # a worker reports nothing
        finalists = "finalists.csv, " * (arguments.out / "finalists.csv").exists()
        print_lines(f"{arguments.out}: trials.csv, {finalists}best_config.json, figures/, runs/")
        if arguments.report:
            from brainslices.report.page import write_report
            from tuning.report import read_search

            search_table = read_search(arguments.out)
            print_lines(write_report(arguments.out / "report.html", search=search_table))


if __name__ == "__main__":
    sys.exit(cli.run(main))
