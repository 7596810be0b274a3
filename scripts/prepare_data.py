"""Makes a slice archive: the one form of data that training and reconstruction read.

    python scripts/prepare_data.py --source /data/oasis/png --out data/oasis
    python scripts/prepare_data.py --source phantom --out data/phantoms
    python scripts/prepare_data.py --source /data/volumes --out data/volumes --slices 32

The source is the public PNG release (with or without its split folders), a folder of grey
pictures, NIfTI or Analyze 7.5 volumes, or the word `phantom`. About 10 seconds for 6,000 pictures.

Writes OUT/slices.npy (pixels), OUT/index.csv (a row a slice) and OUT/archive.json (counts, crop
box, intensity rule, content hash), all of them or none.
"""

import sys
import time

from brainslices import cli
from brainslices.data.preparation import SourceConfig as Arguments


def main(argv=None):
    from brainslices.data.preparation import make_archive

    config = cli.parse(Arguments, argv)
    start = time.perf_counter()
    archive = make_archive(config)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in archive.path.iterdir())
    for split, count in archive.counts.items():
        print(f"{split:9} {count['subjects']:6} subjects {count['slices']:8} slices")
        if not count["slices"]:
            print(f"note: nothing in {split}: give more subjects, or other --fractions")
    rows, cols = archive.image_shape
    crop = archive.crop
    print(f"pictures  {rows} x {cols}, cropped to {crop.rows} x {crop.cols}")
    print(f"{archive.path}: {size / 1e6:.1f} MB in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.run(main))
