"""Prepare a slice archive, the data format of training and reconstruction.

    python scripts/prepare_data.py --source /data/oasis/png --out data/oasis
    python scripts/prepare_data.py --source phantom --out data/phantoms
    python scripts/prepare_data.py --source /data/volumes --out data/volumes --slices 32

The source is the OASIS-1 PNG release (with or without its split folders), a folder of greyscale
images, of NIfTI, Analyze 7.5 or MGH volumes, or the word `phantom`.

Writes OUT/slices.npy (pixels), OUT/index.csv (one row per slice), OUT/archive.json (counts, crop
box, intensity rule, content hash) and, with --subject-table or phantoms, OUT/subjects.csv (age, sex
and other columns of each subject). The files are written together or not at all.
"""

import sys
import time
from collections.abc import Sequence

from brainslices import cli
from brainslices.data.source_config import SourceConfig as Arguments
from brainslices.progress import escape, print_lines


def main(argv: Sequence[str] | None = None) -> None:
    config = cli.parse(Arguments, argv)

    from brainslices.data.preparation import make_archive

    start = time.perf_counter()
    archive = make_archive(config, report=lambda line: print_lines(escape(line)))
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in archive.path.iterdir())
    for split, count in archive.counts.items():
        print_lines(f"{split:9} {count['subjects']:6} subjects {count['slices']:8} slices")
        if not count["slices"]:
            print_lines(f"note: {split} is empty: add subjects, or change --fractions")
    rows, cols = archive.image_shape
    crop = archive.crop
    print_lines(f"images    {rows} x {cols}, cropped to {crop.rows} x {crop.cols}")
    print_lines(f"{archive.path}: {size / 1e6:.1f} MB in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.run(main))
