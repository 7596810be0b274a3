"""Trains stage two, the PixelCNN prior, or goes on with a training that was stopped.

    python scripts/train_pixelcnn.py --vqvae runs/vqvae --run runs/prior
    python scripts/train_pixelcnn.py --vqvae runs/vqvae --run runs/small --channels 64 --layers 6

Codes the slices that the VQ-VAE was trained on first, into its code_grids.npz, where that was not
done yet. Writes RUN/model.keras (best epoch), state.npz (to go on from), history.csv, metrics.json,
config.json, environment.json, figures/training.png and logs/ for TensorBoard. Ctrl-C saves the
state; the same command goes on from there.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from brainslices import cli
from brainslices.runs.selection import Selection
from pixelcnn.config import PRESETS, PixelCNNConfig, PixelCNNTraining

PresetSelection = Selection[Literal["default"]]


@dataclass(frozen=True)
class Arguments:
    """Train a PixelCNN prior on a VQ-VAE's codes, or go on with a training that was stopped."""

    vqvae: Path
    """Run folder of train_vqvae.py."""
    run: Path
    """Run folder to make, or to go on with."""
    selection: PresetSelection
    model: PixelCNNConfig
    training: PixelCNNTraining
    data: Path | None = None
    """Slice archive, where it no longer lies where the VQ-VAE found it."""


def main(argv=None):
    selection = cli.parse_known(PresetSelection, argv)
    given = Arguments(tyro.MISSING, tyro.MISSING, selection, *selection.load(PRESETS))
    arguments = cli.parse(Arguments, argv, given)

    with cli.suppress_backend_logs():
        from brainslices.distributed.collectives import run_on_primary
        from brainslices.distributed.multihost import distributed_session
        from pixelcnn.training import check_run, summary, train
        from vqvae.encode import code_grids

    with distributed_session():
        run_on_primary(check_run, arguments.run, arguments.model, arguments.training)
        wanted = arguments.vqvae, arguments.data, arguments.training.variants
        grids = run_on_primary(code_grids, *wanted)
        metrics = train(grids, arguments.run, arguments.model, arguments.training)
    print(summary(metrics))
    print(f"{arguments.run}: model.keras, history.csv, metrics.json, figures/training.png")


if __name__ == "__main__":
    sys.exit(cli.run(main))
