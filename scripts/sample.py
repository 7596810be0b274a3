"""Sample novel brain slices with a trained prior, or inpaint an image.

    python scripts/sample.py --run runs/prior --count 64 --out outputs/samples
    python scripts/sample.py --run runs/prior --position 0.5 --temperature 0.9 --out middle
    python scripts/sample.py --run runs/aged --condition age=80 sex=F --out outputs/aged
    python scripts/sample.py --run runs/aged --condition age=45,60,75 --count 4 --out ages
    python scripts/sample.py --run runs/prior --count 256 --evaluate --nearest --out measured
    python scripts/sample.py --run runs/prior --count 8 --complete slice.png --out inpainted

Writes OUT/slices/ (8-bit PNGs of the source's size), contact_sheet.png, codes.npz and metrics.json;
with --nearest, or --evaluate of a single condition, also nearest.csv and nearest/; with --report
report.html.
On two cores 64 slices of 572 codes took 21 seconds, 256 with --evaluate 73.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.errors import InputError
from brainslices.progress import print_lines
from brainslices.runs.atomic import check_output_dir
from pixelcnn.config import SamplingConfig


@dataclass(frozen=True)
class Arguments:
    """Sample novel brain slices with a trained prior, or inpaint an image.

    Writes OUT/slices/, contact_sheet.png, codes.npz and metrics.json.
    """

    run: Path
    """Run folder of train_pixelcnn.py."""
    out: Path
    """Output folder: new, empty, or an earlier sampling, which is replaced."""
    sampling: SamplingConfig
    complete: Path | None = None
    """Image to inpaint instead, of the source's size."""
    hidden: tuple[int, int, int, int] | None = None
    """Part to inpaint: top, left, rows, cols in pixels; by default the lower half."""
    evaluate: bool = False
    """Compare the samples with real slices: diversity, memorisation, Frechet distance."""
    nearest: bool = False
    """Show each sample beside its nearest training slice on the contact sheet."""
    vqvae: Path | None = None
    """Run folder of the VQ-VAE, if it was moved after training."""
    data: Path | None = None
    """Slice archive of the VQ-VAE, if it was moved; for --evaluate and --nearest."""
    report: bool = False
    """Write OUT/report.html: the runs of both stages, and the samples."""


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)
    comparison = {"evaluate": arguments.evaluate, "nearest": arguments.nearest}
    is_compared = any(comparison.values())
    if arguments.hidden and not arguments.complete:
        raise InputError(f"`hidden` needs --complete IMAGE. Received: hidden={arguments.hidden}.")
    if arguments.complete and is_compared:
        raise InputError("`complete` excludes --evaluate and --nearest. Give the one or the other.")

    with cli.suppress_backend_logs():
        from brainslices.data.crop import CropBox
        from brainslices.data.images import read_image
        from pixelcnn.generate import FILES, summary, write_samples
        from pixelcnn.slice_prior import SlicePrior
        from vqvae.encode import linked_archive

    check_output_dir(arguments.out, FILES, "sampling")
    prior = SlicePrior.from_run(arguments.run, arguments.vqvae)
    archive = linked_archive(prior.provenance.run, arguments.data) if is_compared else None
    if arguments.complete:
        image = read_image(arguments.complete)
        samples = prior.inpainted(image, arguments.hidden, arguments.sampling)
        samples.metadata["completed"] = str(arguments.complete)
    else:
        samples = prior.samples(arguments.sampling, per_position=2 if arguments.evaluate else 1)
    crop = CropBox(*prior.decoder.crop)
    metrics = write_samples(arguments.out, samples, crop, archive, **comparison)
    print_lines(summary(metrics))
    nearest = ", nearest.csv, nearest/" * (arguments.out / "nearest.csv").exists()
    print_lines(f"{arguments.out}: slices/, contact_sheet.png, codes.npz, metrics.json{nearest}")
    if arguments.report:
        from brainslices.report.page import write_report

        runs, out = [prior.provenance.run.path, arguments.run], arguments.out
        print_lines(write_report(out / "report.html", runs, samples=[out]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
