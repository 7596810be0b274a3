"""Open the browser app of a trained prior: sample, reconstruct, edit codes and inpaint.

    python scripts/studio.py --run runs/prior
    python scripts/studio.py --run runs/prior --port 8000 --open

Needs the extra `studio`. Serves http://127.0.0.1:7860 until Ctrl-C. Nothing leaves the machine, and
no file but the runs, their archive and the uploads is read. The page opens when the models are
compiled, after about half a minute on two cores.
"""

import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.config import check_field
from brainslices.errors import InputError
from brainslices.progress import print_lines


@dataclass(frozen=True)
class Arguments:
    """Open the browser app of a trained prior, on this machine."""

    run: Path
    """Run folder of train_pixelcnn.py."""
    vqvae: Path | None = None
    """Run folder of the VQ-VAE, if it was moved after training."""
    data: Path | None = None
    """Slice archive of the VQ-VAE, if it was moved; for the nearest training slices."""
    port: int = 7860
    """Port of the server."""
    host: str = "127.0.0.1"
    """Address of the server; any other than this machine's own needs --password."""
    password: str | None = None
    """Password that the page asks for; the user name is studio."""
    open: bool = False
    """Open the page in the browser when it is ready."""

    def __post_init__(self):
        check_field(self, "port", lambda value: 1 <= value < 2**16, "from 1 to 65,535")


def main(argv: list[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "The studio needs Gradio, which is not installed. In the clone, run: pip install "
            '--editable ".[studio]".'
        )
    # Before Gradio is imported: no statistics, no request of its own to the network.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}

    with cli.suppress_backend_logs():
        from brainslices.report.collect import folder_name
        from brainslices.report.page import write_report
        from brainslices.studio.app import build
        from brainslices.studio.engine import Engine
        from brainslices.studio.server import check_host, check_port, serve
        from pixelcnn.slice_prior import SlicePrior

    check_host(arguments.host, arguments.password)
    check_port(arguments.host, arguments.port)
    prior = SlicePrior.from_run(arguments.run, arguments.vqvae)
    with tempfile.TemporaryDirectory() as folder:
        runs = [prior.provenance.run.path, arguments.run]
        report = write_report(Path(folder) / "report.html", runs).read_text("utf-8")
    archive = _archive(prior.provenance.run, arguments.data)
    engine = Engine(prior, archive, _scorer(prior, archive))
    print_lines("compiling the models; the page opens when they are ready")
    engine.warm_up()

    def page():
        return build(engine, folder_name(arguments.run), report)

    def ready(address: str) -> None:
        print_lines(f"{address} is ready; Ctrl-C stops it")

    serve(page, arguments.host, arguments.port, arguments.password, arguments.open, ready)


def _archive(vqvae, data):
    """Open the slice archive; None if it was moved and not given."""
    from vqvae.encode import linked_archive

    try:
        return linked_archive(vqvae, data)
    except InputError as error:
        if data:
            raise
        print_lines(f"No test slices and no nearest training slices: {error}")
        return None


def _scorer(prior, archive):
    """Return what makes the scorer; None if the VQ-VAE's run has no code grids."""
    from brainslices.data.code_grids import CodeGrids
    from pixelcnn.scorer import Scorer

    path = prior.provenance.run.code_grids_path
    if not path.is_file():
        print_lines(f"No surprise maps: {path} is missing. Run encode_codes.py.")
        return None

    def make():
        grids = CodeGrids.load(path)
        is_same = archive is not None and archive.content_hash == grids.archive_hash
        return Scorer(prior, grids, archive.subjects if is_same else None)

    return make


if __name__ == "__main__":
    sys.exit(cli.run(main))
