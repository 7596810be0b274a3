"""Encode all slices of a VQ-VAE's archive to the codes that a prior is trained on.

    python scripts/encode_codes.py --run runs/vqvae
    python scripts/encode_codes.py --run runs/vqvae --data data/oasis --variants 4

Writes RUN/code_grids.npz (codes of every split, slice ids, subjects, positions and the hash of the
model). A file that the same model wrote with at least as many variants is kept.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Encode all slices of a VQ-VAE's archive to the codes that a prior is trained on.

    Writes RUN/code_grids.npz.
    """

    run: Path
    """Run folder of train_vqvae.py."""
    data: Path | None = None
    """Slice archive that the run was trained on; by default at its path during training."""
    variants: int = 0
    """Augmented copies (flipped, shifted) of each train slice to encode as well."""
    codes: Path | None = None
    """File of the code grids, for a run that cannot be written; by default RUN/code_grids.npz."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    with cli.suppress_backend_logs():
        from brainslices.data.code_grids import CodeGrids
        from brainslices.runs.run import Run
        from vqvae.encode import load_or_encode, summary

    load_or_encode(arguments.run, arguments.data, arguments.variants, path=arguments.codes)
    path = arguments.codes or Run(arguments.run).code_grids_path
    print_lines(summary(CodeGrids.load(path)))
    print_lines(path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
