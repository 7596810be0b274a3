"""Searches for the codebook, and what else a space varies, by rate and distortion.

    python scripts/tune.py --data data/oasis --out outputs/search --trials 12
    python scripts/tune.py --data data/oasis --out outputs/search --workers 2 --space full \\
        --fix downsampling=8 embedding_dim=32

Writes OUT/trials.csv, OUT/best_config.json (for train_vqvae.py --config), OUT/figures/ and the
trials' runs below OUT/runs/. Stopped or killed, the same command goes on; with more --trials it
adds some. Over several machines: see the README.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.config import check_field
from tuning.config import SearchConfig


@dataclass(frozen=True)
class Arguments:
    """Search for a configuration of both stages, or go on with a search that was stopped."""

    data: Path
    """Slice archive made by prepare_data.py."""
    out: Path
    """Folder of the search to make, or to go on with."""
    search: SearchConfig
    workers: int = 1
    """Trials at a time, each with its share of the cores, or a GPU of its own."""

    def __post_init__(self):
        check_field(self, "workers", lambda value: value >= 1, "at least 1")


def main(argv=None):
    arguments = cli.parse(Arguments, argv)

    # Trials may share a GPU, and each process that looks at one would else take all its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with cli.suppress_backend_logs():
        from tuning.search import VARIABLES, join, search

    data, out = arguments.data, arguments.out
    if any(name in os.environ for name in VARIABLES):
        cli.print_wrapped(join(data, out, arguments.search, arguments.workers))
    else:
        cli.print_wrapped(search(data, out, arguments.search, arguments.workers))
        print(f"{out}: trials.csv, best_config.json, figures/, runs/")


if __name__ == "__main__":
    sys.exit(cli.run(main))
