"""Compare the rates of trained models with image codecs at the same score.

    python scripts/reconstruct.py --run runs/vqvae --data data/oasis --prior runs/prior --out out/a
    python scripts/rate_distortion.py --reconstructions out/a out/b --data data/oasis --out out/r

Writes OUT/rate_distortion.png (ssim_foreground against bits per pixel, beside AVIF, JPEG 2000 and
JPEG XL), rate_distortion.csv (a row for each point) and metrics.json, with the Bjontegaard rate
difference to each codec if there are several reconstructions. Takes minutes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Compare the rates of trained models with image codecs at the same score."""

    reconstructions: tuple[Path, ...]
    """Folders of reconstruct.py --prior, of the same slices, whose names label the points."""
    data: Path
    """Slice archive that they were made of."""
    out: Path
    """Folder to write: new, empty, or an earlier comparison, which is replaced."""


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    from brainslices.report.rate_distortion import FILES, compare_with_codecs, summary

    metrics = compare_with_codecs(arguments.reconstructions, arguments.data, arguments.out)
    print_lines(summary(metrics))
    print_lines(f"{arguments.out}: {', '.join(FILES)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
