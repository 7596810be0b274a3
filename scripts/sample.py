"""Samples novel brain slices, or completes a partly known one, with a trained prior.

    python scripts/sample.py --run runs/prior --count 64 --out outputs/samples
    python scripts/sample.py --run runs/prior --count 16 --position 0.5 --temperature 0.9 --out mid
    python scripts/sample.py --run runs/prior --count 256 --evaluate --nearest --out measured
    python scripts/sample.py --run runs/prior --count 8 --complete slice.png --out completed

Writes OUT/slices/ (8-bit PNGs of the source's size), contact_sheet.png, codes.npz (code grids,
positions, log-probabilities) and metrics.json (with --evaluate beside the same figures of real
slices). On two cores 64 slices of 572 codes took 21 seconds, 256 with --evaluate 73.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.errors import InputError
from brainslices.runs.atomic import check_output_dir
from brainslices.runs.run import Run
from pixelcnn.config import SamplingConfig


@dataclass(frozen=True)
class Arguments:
    """Sample novel brain slices, or complete a partly known one, with a trained prior.

    Writes OUT/slices/, contact_sheet.png, codes.npz and metrics.json.
    """

    run: Path
    """Run folder of train_pixelcnn.py."""
    out: Path
    """Folder to write: new, empty, or an earlier sampling, which is replaced."""
    drawing: SamplingConfig
    complete: Path | None = None
    """Picture to complete instead, of the source's size."""
    hidden: tuple[int, int, int, int] | None = None
    """Its part to make anew: top, left, rows, cols in pixels; by default the lower half."""
    evaluate: bool = False
    """Measure the samples beside real slices: diversity, memorisation, Frechet distance."""
    nearest: bool = False
    """Show each sample beside its nearest training slice on the contact sheet."""
    vqvae: Path | None = None
    """Run folder of the VQ-VAE, where it no longer lies where training found it."""
    data: Path | None = None
    """Its slice archive, likewise; for --evaluate and --nearest."""


def main(argv=None):
    arguments = cli.parse(Arguments, argv)
    drawing = arguments.drawing
    _check(arguments)

    with cli.suppress_backend_logs():
        from brainslices.data.crop import CropBox
        from pixelcnn.generate import FILES, spread_positions, summary, write_samples
        from pixelcnn.model import PixelCNN
        from pixelcnn.provenance import load_provenance
        from pixelcnn.sampling import Sampler
        from vqvae.encode import linked_archive
        from vqvae.model import VQVAE

    check_output_dir(arguments.out, FILES, "sampling")
    run = Run(arguments.run)
    prior, provenance = PixelCNN.from_run(run), load_provenance(run, arguments.vqvae)
    vqvae = VQVAE.from_run(provenance.run, "float32")
    sampler = Sampler(prior, drawing.temperature, drawing.top_k, drawing.top_p)
    facts = {name: getattr(drawing, name) for name in ("seed", "temperature", "top_k", "top_p")}
    options = {"nearest": arguments.nearest, "evaluate": arguments.evaluate}
    if arguments.evaluate or arguments.nearest:
        options["archive"] = linked_archive(provenance.run, arguments.data)
    if arguments.complete:
        positions, drawn, task = _completion(arguments, sampler, vqvae, provenance)
        decode, options["original"] = task.decode, task.image
        facts |= {"completed": str(arguments.complete), "hidden": task.hidden}
        facts["position"] = float(positions[0])
    else:
        at_each = 2 if arguments.evaluate else 1
        positions = spread_positions(drawing.count, provenance.positions, drawing.position, at_each)
        drawn = sampler.batches(positions, drawing.seed, drawing.batch_size)
        decode = vqvae.decode_codes
    facts |= provenance.facts
    crop = CropBox(*vqvae.crop)
    metrics = write_samples(arguments.out, drawn, decode, positions, facts, crop=crop, **options)
    print(summary(metrics))
    print(f"{arguments.out}: slices/, contact_sheet.png, codes.npz, metrics.json")


def _check(arguments):
    """What can be told before anything is loaded."""
    if arguments.hidden and not arguments.complete:
        raise InputError(
            "`hidden` is a part of a picture that is completed: give that picture as --complete. "
            f"Received: hidden={arguments.hidden}."
        )
    if arguments.complete and (arguments.evaluate or arguments.nearest):
        raise InputError(
            "Completions are shown beside their original: leave --evaluate and --nearest out, or "
            "--complete."
        )
    if arguments.complete and len(arguments.drawing.position) > 1:
        raise InputError(
            "A picture lies at one `position` in the head: give one with --complete, or none. "
            f"Received: position={arguments.drawing.position}."
        )


def _completion(arguments, sampler, vqvae, provenance):
    """What completing a picture draws: positions, batches of grids, the task itself."""
    from brainslices.data.images import read_image
    from pixelcnn.generate import spread_positions
    from pixelcnn.sampling import MASKED, complete, most_likely_position
    from vqvae.inpainting import Inpainting

    drawing = arguments.drawing
    task = Inpainting(vqvae, read_image(arguments.complete), arguments.hidden)
    known, chance = task.observed_codes(MASKED), (drawing.seed, drawing.batch_size)
    asked = drawing.position or (
        most_likely_position(sampler, known, provenance.train_positions, *chance),
    )
    positions = spread_positions(drawing.count, provenance.positions, asked)
    drawn = complete(sampler, known, asked[0], drawing.count, *chance)
    return positions, [drawn], task


if __name__ == "__main__":
    sys.exit(cli.run(main))
