"""Export a trained model to ONNX, to run it without Keras.

    python scripts/export.py --run runs/vqvae --out outputs/vqvae_onnx
    python scripts/export.py --run runs/prior --out outputs/prior_onnx

Writes OUT/encoder.onnx (image -> codes) and OUT/decoder.onnx (codes -> image in [0, 1]) of a
VQ-VAE, or OUT/prior.onnx (codes, position -> logits) of a prior. Every file is compared with its
model in ONNX Runtime. Needs `pip install --editable ".[export]"`.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brainslices import cli
from brainslices.progress import print_lines
from brainslices.runs.run import Run
from brainslices.tables import format_table


@dataclass(frozen=True)
class Arguments:
    """Export a trained model to ONNX, to run it without Keras.

    Writes OUT/encoder.onnx and decoder.onnx of a VQ-VAE, or OUT/prior.onnx of a prior.
    """

    run: Path
    """Run folder of train_vqvae.py or train_pixelcnn.py."""
    out: Path
    """Folder to write: new, empty, or an earlier export, which is replaced."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = cli.parse(Arguments, argv)

    kind = Run(arguments.run).open_config()["kind"]
    with cli.suppress_backend_logs():
        from brainslices.runs.export import write_exports

        module = importlib.import_module(f"{kind}.export")

    files = write_exports(arguments.out, *module.build_exports(arguments.run))
    rows = [
        (file, name, f"(batch, {', '.join(map(str, shape))})".replace(", )", ")"))
        for file, shapes in files.items()
        for name, shape in shapes.items()
    ]
    print_lines(format_table(rows))
    print_lines(f"{arguments.out}: {', '.join(files)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
