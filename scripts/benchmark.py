"""Measure speed and memory, compared with baselines.

    python scripts/benchmark.py --data data/oasis --source /data/oasis/png --out benchmark.json
    python scripts/benchmark.py --data data/oasis --out trial.json --quick --only seed

All measurements take 23 minutes on two idle cores, `--only sampling` one minute. The values of
--quick are not meaningful. Writes OUT, after each measured value: versions, number of cores, and a
row for each value with its baseline and threshold; and OUT_time.png and OUT_memory.png, the growth
curves, if any were measured.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brainslices import cli
from brainslices.errors import InputError
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Measure speed and memory, compared with baselines."""

    data: Path
    """Slice archive made by prepare_data.py."""
    out: Path
    """JSON file to write."""
    source: Path | None = None
    """Folder of images, to time making an archive of them."""
    only: tuple[str, ...] = ()
    """Measurements to run, all by default: machine, pauses; start, archive, memory, seed, default,
    pipeline, evaluation, slices, quantizer, codes; sampling, scoring, conditions, growth,
    sampling_memory, prior."""
    quick: bool = False
    """Measure too little for stable values, only to check that the benchmark runs."""


def _find_benchmarks(folder):
    if not (folder / "benchmarks").is_dir():
        raise InputError(
            "The benchmarks are not part of an installed package. "
            "Run python scripts/benchmark.py in a clone of the repository."
        )
    sys.path.insert(0, str(folder))  # not there when run as a subcommand


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    if arguments.out.is_dir():
        raise InputError(
            f"`out` must be a JSON file to write. Received: the folder {arguments.out}."
        )
    _find_benchmarks(Path(__file__).parent)

    from benchmarks.harness import Setting

    from brainslices.data.archive import SliceArchive
    from brainslices.runs.provenance import environment

    cli.share_gpu_memory()  # with measurements in processes of their own
    with cli.suppress_backend_logs():
        from benchmarks import pixelcnn_benchmarks, roofline, vqvae_benchmarks

    # TensorFlow mistakes the many models for one that is compiled again and again.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if arguments.source and not arguments.source.is_dir():
        raise InputError(f"`source` must be a folder of images. Received: {arguments.source}.")
    archive = SliceArchive.open(arguments.data)
    arguments.out.resolve().parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because /tmp may be a small file system in memory.
    with tempfile.TemporaryDirectory(dir=arguments.out.resolve().parent) as workspace:
        setting = Setting(
            archive=arguments.data,
            scripts=Path(__file__).parent,
            workspace=Path(workspace),
            source=arguments.source,
            quick=arguments.quick,
        )
        measurements = roofline.MEASUREMENTS | vqvae_benchmarks.MEASUREMENTS
        measurements |= pixelcnn_benchmarks.MEASUREMENTS
        metadata = environment(archive_hash=archive.content_hash, quick=arguments.quick)
        rows, seconds = _measure(arguments, measurements, setting, metadata)
    _report(arguments, rows, seconds, metadata["cores"])


def _measure(arguments, measurements, setting, metadata):
    """Measure all; what fails or is stopped later costs no value that was measured before."""
    from benchmarks.harness import measure_all

    from brainslices.runs.json_files import write_json

    start, rows = time.perf_counter(), []
    measured = measure_all(measurements, setting, arguments.only)
    while True:
        row = next(measured, None)
        seconds = time.perf_counter() - start
        if row:
            rows.append(row)
        values = {"environment": metadata, "seconds": seconds}
        write_json(arguments.out, values | {"rows": [row.as_dict() for row in rows]})
        if not row:
            return rows, seconds


def _report(arguments, rows, seconds, cores):
    from benchmarks.harness import draw_growth, format_rows

    for name, unit in (("time", "s"), ("memory", "GB")):
        draw_growth(arguments.out.with_name(f"{arguments.out.stem}_{name}.png"), rows, unit)
    if arguments.quick:  # not meaningful: no threshold is met or missed
        rows = [replace(row, at_most=None, at_least=None) for row in rows]
    print_lines(format_rows(rows))
    print_lines(f"{arguments.out}: {len(rows)} rows in {seconds:.0f} s, {cores} cores")


if __name__ == "__main__":
    sys.exit(cli.run(main))
