"""ONNX export of a prior: its logits."""

import dataclasses
import json

import numpy as np

from brainslices.runs.export import Export
from brainslices.runs.run import Run
from brainslices.types import PathLike, Tensor
from pixelcnn.model import PixelCNN

__all__ = ["build_exports"]


def build_exports(run: PathLike) -> tuple[dict[str, Export], dict[str, str]]:
    """Return the file that a trained prior exports, and its metadata.

    `prior.onnx` maps the inputs of a `PixelCNN`, by name, to float32 logits
    (batch, r, c, num_embeddings). With conditions, `position` is of shape (batch, 1 + conditions),
    encoded as `Variable.encode` does from `condition_variables` of the metadata (JSON); -1 is
    unknown.

    Args:
        run: the run folder of a trained prior.

    Raises:
        InputError: as `PixelCNN.from_run`.
    """
    model, rng = PixelCNN.from_run(run), np.random.default_rng(0)
    variables = model.condition_variables
    example = {item.name: item.categories[0] if item.categories else item.low for item in variables}
    inputs = {
        "codes": rng.integers(0, model.num_embeddings, (2, *model.grid_shape), "int32"),
        "position": model.with_conditions(rng.random(2, "float32"), example),
    }

    def logits(*tensors: Tensor) -> Tensor:
        return model(dict(zip(inputs, tensors, strict=True)))

    vqvae_hash = str(Run(run).open_config("pixelcnn").get("vqvae_hash"))
    files = {"prior.onnx": Export(logits, inputs, "logits")}
    metadata = {"prior_hash": model.file_hash, "vqvae_hash": vqvae_hash}
    if variables:
        metadata["condition_variables"] = json.dumps(
            [dataclasses.asdict(item) for item in variables]
        )
    return files, metadata
