r"""Write one HTML file about runs, their reconstructions and samples, and a search.

    python scripts/report.py --runs runs/vqvae runs/prior --reconstruction outputs/test \
        --samples outputs/samples --out report.html --open
    python scripts/report.py --runs runs/narrow runs/wide \
        --samples outputs/narrow outputs/wide --out compared.html
    python scripts/report.py --search outputs/search --out search.html

The file needs no network and no server: open it by double click. A run may be half trained; what
is missing is named in the report.
"""

import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Write one HTML file about runs, their reconstructions and samples, and a search."""

    out: Path
    """HTML file to write, or to replace."""
    runs: tuple[Path, ...] = ()
    """Run folders of train_vqvae.py and train_pixelcnn.py; several are compared side by side."""
    search: Path | None = None
    """Folder of tune.py."""
    samples: tuple[Path, ...] = ()
    """Output folders of sample.py; several are shown side by side by slice position."""
    scores: Path | None = None
    """Output folder of score.py."""
    reconstruction: tuple[Path, ...] = ()
    """Output folders of reconstruct.py."""
    open: bool = False
    """Open the report in the web browser."""


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    from brainslices.report.page import write_report

    search = None
    if arguments.search:
        with cli.suppress_backend_logs():
            from tuning.report import read_search
        search = read_search(arguments.search)
    path = write_report(
        arguments.out,
        arguments.runs,
        reconstructions=arguments.reconstruction,
        samples=arguments.samples,
        scores=arguments.scores,
        search=search,
    )
    print_lines(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in a web browser")
    if arguments.open:
        webbrowser.open(path.resolve().as_uri())


if __name__ == "__main__":
    sys.exit(cli.run(main))
