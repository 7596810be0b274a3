"""Encodes the slices that a VQ-VAE was trained and scored on: the codes that a prior learns.

    python scripts/encode_codes.py --run runs/vqvae
    python scripts/encode_codes.py --run runs/vqvae --data data/oasis --variants 4

Writes RUN/code_grids.npz (codes of every split, slice ids, subjects, positions and the hash of the
model). Where that is there already, of the same model and with as many variants, it stays.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli


@dataclass(frozen=True)
class Arguments:
    """Encode the slices that a VQ-VAE was trained and scored on: the codes that a prior learns.

    Writes RUN/code_grids.npz.
    """

    run: Path
    """Run folder of train_vqvae.py."""
    data: Path | None = None
    """Slice archive that the run was trained on. By default where it lay then."""
    variants: int = 0
    """Mirrored and moved copies of each train slice to encode too."""


def main(argv=None):
    arguments = cli.parse(Arguments, argv)

    with cli.suppress_backend_logs():
        from brainslices.data.code_grids import CodeGrids
        from brainslices.runs.run import Run
        from vqvae.encode import code_grids, summary

    code_grids(arguments.run, arguments.data, arguments.variants)
    path = Run(arguments.run).code_grids_path
    print(summary(CodeGrids.load(path)))
    print(path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
