"""Measures speed and memory, side by side with what the same costs otherwise.

    python scripts/benchmark.py --data data/oasis --source /data/oasis/png --out benchmark.json
    python scripts/benchmark.py --data data/oasis --out trial.json --quick --only seed

On two cores that do nothing else all of it takes 23 minutes, `--only sampling` one of them. With
--quick the figures mean nothing. Writes OUT: versions, cores, and a row a figure with its bar where
it has one; beside it OUT_time.png and OUT_memory.png, how both grow, if rows of that are among
them.
"""

import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from brainslices import cli
from brainslices.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Measure speed and memory, side by side with what the same costs otherwise."""

    data: Path
    """Slice archive made by prepare_data.py."""
    out: Path
    """JSON file to write."""
    source: Path | None = None
    """Folder of pictures, to time the making of an archive."""
    only: tuple[str, ...] = ()
    """Measurements to take, all by default: machine; start, archive, memory, seed, default,
    evaluation, slices, quantizer, codes; sampling, growth, sampling_memory, prior."""
    quick: bool = False
    """Measure too little for stable figures, only to see that it works."""


def main(argv=None):
    arguments = cli.parse(Arguments, argv)

    folder = Path(__file__).parent
    if not (folder / "benchmarks").is_dir():
        raise InputError(
            "The benchmarks are not part of an installed package. "
            "Run python scripts/benchmark.py in a clone of the repository."
        )
    sys.path.insert(0, str(folder))  # where the command runs as a subcommand, it is not there

    from benchmarks.harness import Setting, draw_growth, measure_all, table

    from brainslices.data.archive import SliceArchive
    from brainslices.runs.json_files import write_json
    from brainslices.runs.provenance import environment

    # Each measurement in a process of its own needs its part of a GPU's memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with cli.suppress_backend_logs():
        from benchmarks import pixelcnn_benchmarks, roofline, vqvae_benchmarks

    # TensorFlow takes the many models that are measured for one that it compiles again and again.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    start = time.perf_counter()
    archive = SliceArchive.open(arguments.data)
    arguments.out.resolve().parent.mkdir(parents=True, exist_ok=True)
    # Beside the output: /tmp may lie in memory, and be small.
    with tempfile.TemporaryDirectory(dir=arguments.out.resolve().parent) as workspace:
        setting = Setting(
            archive=arguments.data,
            scripts=Path(__file__).parent,
            workspace=Path(workspace),
            pictures=arguments.source,
            quick=arguments.quick,
        )
        measurements = {
            **roofline.MEASUREMENTS,
            **vqvae_benchmarks.MEASUREMENTS,
            **pixelcnn_benchmarks.MEASUREMENTS,
        }
        rows = measure_all(measurements, setting, arguments.only)
    facts = environment(archive_hash=archive.content_hash, quick=arguments.quick)
    seconds = time.perf_counter() - start
    values = {"environment": facts, "seconds": seconds, "rows": [row.as_dict() for row in rows]}
    write_json(arguments.out, values)
    for name, unit in (("time", "s"), ("memory", "GB")):
        draw_growth(arguments.out.with_name(f"{arguments.out.stem}_{name}.png"), rows, unit)
    # Figures that mean nothing neither meet a bar nor miss it.
    plain = {"at_most": None, "at_least": None} if arguments.quick else {}
    print(table([replace(row, **plain) for row in rows]))
    print(f"{arguments.out}: {len(rows)} rows in {seconds:.0f} s, {facts['cores']} cores")


if __name__ == "__main__":
    sys.exit(cli.run(main))
