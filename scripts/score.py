"""Score slices under a trained prior, and map what in them is unlike the trained brains.

    python scripts/score.py --run runs/prior --data data/oasis --split test --out outputs/scores
    python scripts/score.py --run runs/prior --data data/oasis --predict --out outputs/predicted
    python scripts/score.py --run runs/prior --data data/oasis --lesions --out outputs/lesions
    python scripts/score.py --run runs/prior --data /data/images --out outputs/mine

Writes OUT/slices.csv (one row per slice: bits, percentile among the validation slices near its
position, pixel of the most surprising code), surprise_maps.npy (float16 of shape (slices, rows,
cols): nats of the codes minus the mean of validation codes at that cell and position), surprise.png
(the most, the median and the least surprising slices) and metrics.json; with --predict,
prediction_maps.npy; with --restore, restoration_maps.npy; with --lesions, lesions.csv. For research
on methods only, never for diagnosis.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.data.file_selection import FileSelection
from brainslices.progress import print_lines
from pixelcnn.config import ScoringConfig


@dataclass(frozen=True)
class Arguments:
    """Score slices under a trained prior, and map what is unlike the trained brains.

    Writes OUT/slices.csv, surprise_maps.npy, surprise.png and metrics.json.
    """

    run: Path
    """Run folder of train_pixelcnn.py."""
    data: Path
    """Slice archive made by prepare_data.py, or any folder of grey images (or one image).

    The flags that select and name files (--pattern, --table, --include, ...) apply to a folder."""
    out: Path
    """Output folder: new, empty, or an earlier scoring, which is replaced."""
    scoring: ScoringConfig
    split: str | None = None
    """train, validate or test. By default test, or all images of a folder without splits."""
    report: bool = False
    """Write OUT/report.html: the prior's run, the scores and the figure."""
    selection: FileSelection = FileSelection()


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    with cli.suppress_backend_logs():
        from brainslices.data.slices import open_slices
        from pixelcnn.score import score, summary

    metrics = score(
        arguments.run,
        open_slices(arguments.data, arguments.split, arguments.selection),
        arguments.out,
        config=arguments.scoring,
    )
    print_lines(summary(metrics))
    print_lines(
        f"{arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}"
    )
    if arguments.report:
        from brainslices.report.page import write_report

        out = arguments.out
        print_lines(write_report(out / "report.html", [arguments.run], scores=out))


if __name__ == "__main__":
    sys.exit(cli.run(main))
