"""What the command `export` writes for a prior: its logits."""

import numpy as np

from brainslices.runs.export import Export
from brainslices.runs.run import Run
from brainslices.types import PathLike, Tensor
from pixelcnn.model import PixelCNN

__all__ = ["exports"]


def exports(run: PathLike) -> tuple[dict[str, Export], dict[str, str]]:
    """Return the file that a trained prior exports, and its metadata.

    `prior.onnx` maps the inputs of a `PixelCNN`, by name, to float32 logits
    (batch, r, c, num_embeddings).

    Args:
        run: the run folder of a trained prior.

    Raises:
        InputError: as `PixelCNN.from_run`.
    """
    model, rng = PixelCNN.from_run(run), np.random.default_rng(0)
    inputs = {
        "codes": rng.integers(0, model.num_embeddings, (2, *model.grid_shape), "int32"),
        "position": rng.random(2, "float32"),
    }

    def logits(*tensors: Tensor) -> Tensor:
        return model(dict(zip(inputs, tensors, strict=True)))

    vqvae_hash = str(Run(run).open_config("pixelcnn").get("vqvae_hash"))
    files = {"prior.onnx": Export(logits, inputs, "logits")}
    return files, {"prior_hash": model.file_hash, "vqvae_hash": vqvae_hash}
