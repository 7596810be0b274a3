"""Collect the figures of trained models in one table and one JSON file.

    python scripts/results.py --folders outputs/default outputs/seed --out results.json

Each folder holds vqvae (a run of train_vqvae.py) and reconstruction (of reconstruct.py), and
optionally prior (a run of train_pixelcnn.py) and samples (of sample.py --evaluate).
scripts/reproduce_oasis.sh makes such folders.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Collect the figures of trained models in one table and one JSON file."""

    folders: tuple[Path, ...]
    """One folder per model, named like it, with vqvae/, reconstruction/, prior/ and samples/."""
    out: Path
    """JSON file to write, or to replace."""


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    from brainslices.report.results import collect_results, results_table, write_results

    rows = collect_results(arguments.folders)
    write_results(arguments.out, rows)
    print_lines(results_table(rows))
    print_lines(f"{arguments.out}: {len(rows)} rows")


if __name__ == "__main__":
    sys.exit(cli.run(main))
