"""Serve the browser app of a fake prior: `fake_studio.py PORT ARCHIVE [PASSWORD]`."""

import os
import sys

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}

from fake_prior import FakePrior, FakeScorer  # noqa: E402

from brainslices.data.archive import SliceArchive  # noqa: E402
from brainslices.studio.app import build  # noqa: E402
from brainslices.studio.engine import Engine  # noqa: E402
from brainslices.studio.server import serve  # noqa: E402


def main(port, archive, password=None):
    engine = Engine(FakePrior(), SliceArchive.open(archive), FakeScorer)
    serve(
        lambda: build(engine, "A fake prior", "<h1>The report</h1>"),
        "127.0.0.1",
        int(port),
        password,
        False,
        lambda address: sys.stdout.write(f"{address}\n") and sys.stdout.flush(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
