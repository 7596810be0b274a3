"""Reconstruct brain slices with a trained VQ-VAE and score how similar they are to the originals.

    python scripts/reconstruct.py --run runs/vqvae --data data/oasis --split test --out outputs/test
    python scripts/reconstruct.py --run runs/vqvae --data /data/images --out outputs/mine
    python scripts/reconstruct.py --run runs/vqvae --data data/oasis --sweeps 2 --out outputs/better

Writes OUT/metrics.json (scores with 95 % intervals by subject, with their floors), slices.csv
(one row per slice), reconstruction.png (original, code grid, reconstruction and SSIM map of the
best, the median and the worst slices), examples.npz (the same as arrays) and, with --pictures,
pictures/ (8-bit PNGs of the source size); with --report also report.html.

With --sweeps the codes are searched for the most similar image instead of being the nearest ones.
With --prior the bits of the codes under the prior are measured too, and --rate-weight makes the
search prefer codes that cost fewer of them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.data.file_selection import FileSelection
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Reconstruct brain slices with a trained VQ-VAE and score their similarity.

    Writes OUT/metrics.json, slices.csv, reconstruction.png and, with --pictures, pictures/.
    """

    run: Path
    """Run folder of train_vqvae.py."""
    data: Path
    """Slice archive made by prepare_data.py, or any folder of grey images (or one image).

    Images whose names have no subject are subjects of their own. The flags that select and name
    files (--pattern, --table, --include, ...) apply to a folder."""
    out: Path
    """Folder to write: new, empty, or an earlier reconstruction, which is replaced."""
    split: str | None = None
    """train, validate or test. By default test, or all images of a folder without splits."""
    batch_size: int = 32
    """Slices reconstructed at a time."""
    pictures: bool = False
    """Write the reconstructions too, as 8-bit grey PNGs."""
    codecs: bool = False
    """Code the same slices with AVIF, JPEG 2000 and JPEG XL too, at the model's rate (under the
    prior, if there is one). Takes minutes."""
    sweeps: int = 0
    """Sweeps of a search for codes that decode to a more similar image; 0 for the nearest codes.
    Takes minutes."""
    prior: Path | None = None
    """Run folder of train_pixelcnn.py on this VQ-VAE: measure the bits of the codes under it."""
    rate_weight: float = 0.0
    """With --sweeps and --prior: loss that one bit per pixel is worth to the search. Above 0 it
    prefers codes that cost fewer bits."""
    report: bool = False
    """Write OUT/report.html: the slices with a slider between original and reconstruction."""
    selection: FileSelection = FileSelection()


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    with cli.suppress_backend_logs():
        from brainslices.data.slices import open_slices
        from brainslices.evaluation.reports import reconstruction_summary
        from pixelcnn.entropy_model import EntropyModel
        from vqvae.config import Encoding
        from vqvae.evaluate import reconstruct

    slices, entropy_model = open_slices(arguments.data, arguments.split, arguments.selection), None
    if arguments.prior is not None:
        entropy_model = EntropyModel.from_run(arguments.prior, arguments.run, slices)
    encoding = Encoding(
        sweeps=arguments.sweeps,
        rate_weight=arguments.rate_weight,
        entropy_model=entropy_model,
    )
    metrics = reconstruct(
        arguments.run,
        slices,
        arguments.out,
        batch_size=arguments.batch_size,
        pictures=arguments.pictures,
        codecs=arguments.codecs,
        encoding=encoding,
    )
    print_lines(reconstruction_summary(metrics))
    files = (
        "metrics.json, slices.csv, reconstruction.png, examples.npz"
        + ", pictures/" * arguments.pictures
    )
    print_lines(f"{arguments.out}: {files}")
    if arguments.report:
        from brainslices.report.page import write_report

        out = arguments.out
        print_lines(write_report(out / "report.html", [arguments.run], reconstructions=[out]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
