"""Train stage two, the PixelCNN prior, or resume its training.

    python scripts/train_pixelcnn.py --vqvae runs/vqvae --run runs/prior
    python scripts/train_pixelcnn.py --vqvae runs/vqvae --run runs/small --channels 64 --layers 6
    python scripts/train_pixelcnn.py --vqvae runs/vqvae --run runs/aged --conditions age sex

First encodes the slices that the VQ-VAE was trained on into its code_grids.npz, unless that file is
up to date. Writes RUN/model.keras (best epoch), state.npz (checkpoint), history.csv, metrics.json,
config.json, environment.json, figures/training.png and logs/ for TensorBoard. Ctrl-C writes a
checkpoint; the same command resumes from there.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from brainslices import cli
from brainslices.progress import print_lines
from brainslices.runs.selection import Selection
from pixelcnn.config import PRESETS, PixelCNNConfig, PixelCNNTraining

PresetSelection = Selection[Literal["default", "small"]]


@dataclass(frozen=True)
class Arguments:
    """Train a PixelCNN prior on the codes of a VQ-VAE, or resume its training."""

    vqvae: Path
    """Run folder of train_vqvae.py."""
    run: Path
    """Run folder to create, or to resume."""
    selection: PresetSelection
    model: PixelCNNConfig
    training: PixelCNNTraining
    data: Path | None = None
    """Slice archive of the VQ-VAE, if it was moved."""
    codes: Path | None = None
    """File of the code grids, for a VQ-VAE run that cannot be written; by default in that run."""
    report: bool = False
    """Write RUN/report.html, of both stages, when the training has ended."""


def main(argv: list[str] | None = None) -> None:
    selection = cli.parse_known(PresetSelection, argv)
    defaults = Arguments(tyro.MISSING, tyro.MISSING, selection, *selection.load(PRESETS))
    arguments = cli.parse(Arguments, argv, defaults)

    with cli.suppress_backend_logs():
        from brainslices.distributed.collectives import is_primary, run_on_primary
        from brainslices.distributed.multihost import distributed_session
        from brainslices.training.stage import check_resumable
        from pixelcnn.training import summary, train
        from vqvae.encode import load_or_encode

    with distributed_session():
        model, training, path = arguments.model, arguments.training, arguments.codes
        # Before slices are encoded for it.
        vqvae_hash = run_on_primary(_vqvae_hash, arguments.vqvae)
        provenance = {"vqvae_hash": vqvae_hash}
        run_on_primary(check_resumable, arguments.run, "pixelcnn", model, training, provenance)
        subjects = run_on_primary(_subjects, arguments)
        grids = run_on_primary(
            partial(load_or_encode, arguments.vqvae, arguments.data, training.variants, path=path)
        )
        metrics = train(grids, arguments.run, model, training, subjects)
        reports = arguments.report and is_primary()  # the process that has the run folder
    print_lines(summary(metrics))
    print_lines(f"{arguments.run}: model.keras, history.csv, metrics.json, figures/training.png")
    if reports:
        from brainslices.report.page import write_report

        print_lines(write_report(arguments.run / "report.html", [arguments.vqvae, arguments.run]))


def _vqvae_hash(vqvae):
    from brainslices.runs.provenance import file_hash
    from brainslices.runs.run import Run

    run = Run(vqvae)
    run.open_config("vqvae")
    return file_hash(run.trained_model_path())


def _subjects(arguments):
    """Read the archive's table of subjects, if the prior has conditions, and check these."""
    from pixelcnn.conditions import find_variables
    from vqvae.encode import linked_archive

    if not arguments.model.conditions:
        return {}
    archive = linked_archive(arguments.vqvae, arguments.data)
    subjects = [record.subject for record in archive.index if record.split == "train"]
    find_variables(arguments.model.conditions, archive.subjects, subjects)
    return archive.subjects


if __name__ == "__main__":
    sys.exit(cli.run(main))
