"""Train stage one, the VQ-VAE, or resume its training.

    python scripts/train_vqvae.py --data data/oasis --run runs/vqvae
    python scripts/train_vqvae.py --data data/oasis --run runs/seed --preset seed

Writes RUN/model.keras (best epoch), state.npz (checkpoint), history.csv, metrics.json, config.json,
environment.json, figures/training.png and logs/ for TensorBoard. Ctrl-C writes a checkpoint; the
same command resumes from it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from brainslices import cli
from brainslices.progress import print_lines
from brainslices.runs.selection import Selection
from vqvae.config import PRESETS, VQVAEConfig, VQVAETraining

PresetSelection = Selection[Literal["default", "small", "seed"]]


@dataclass(frozen=True)
class Arguments:
    """Train a VQ-VAE on a slice archive, or resume its training."""

    data: Path
    """Slice archive made by prepare_data.py."""
    run: Path
    """Run folder: new, or that of the training to resume."""
    selection: PresetSelection
    model: VQVAEConfig
    training: VQVAETraining
    report: bool = False
    """Write RUN/report.html when the training has ended."""


def main(argv: Sequence[str] | None = None) -> None:
    selection = cli.parse_known(PresetSelection, argv)
    defaults = Arguments(tyro.MISSING, tyro.MISSING, selection, *selection.load(PRESETS))
    arguments = cli.parse(Arguments, argv, defaults)

    with cli.suppress_backend_logs():
        from brainslices.distributed.collectives import is_primary
        from brainslices.distributed.multihost import distributed_session
        from vqvae.training import train

    with distributed_session():
        metrics = train(arguments.data, arguments.run, arguments.model, arguments.training)
        reports = arguments.report and is_primary()  # the process that has the run folder
    print_lines(
        f"best epoch {metrics['epoch']} of {metrics['epochs']}: validation "
        f"ssim {metrics['ssim']:.4f}, ssim_foreground {metrics['ssim_foreground']:.4f} "
        f"(mean training image {metrics['floor_mean_image']['ssim_foreground']:.4f}), "
        f"codebook usage {metrics['train_codebook_usage']:.1%}, "
        f"{metrics['bits_per_pixel_raw']:.4f} bits per pixel raw"
    )
    print_lines(f"{arguments.run}: model.keras, history.csv, metrics.json, figures/training.png")
    if reports:
        from brainslices.report.page import write_report

        print_lines(write_report(arguments.run / "report.html", [arguments.run]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
