"""ONNX export of a VQ-VAE: encoder and decoder."""

import numpy as np
from keras import ops

from brainslices.runs.export import Export
from brainslices.types import PathLike, Tensor
from vqvae.model import VQVAE

__all__ = ["build_exports"]


def build_exports(run: PathLike) -> tuple[dict[str, Export], dict[str, str]]:
    """Return the files that a trained VQ-VAE exports, and their metadata.

    `encoder.onnx` maps float32 images (batch, rows, cols, 1) in [0, 1] to int32 codes
    (batch, r, c); `decoder.onnx` maps such codes to images.

    Args:
        run: the run folder of a trained VQ-VAE.

    Raises:
        InputError: as `VQVAE.from_run`.
    """
    model = VQVAE.from_run(run, "float32")
    rng, count = np.random.default_rng(0), model.config.num_embeddings
    example_images = rng.random((2, *model.image_shape, 1), "float32")
    example_codes = rng.integers(0, count, (2, *model.code_grid_shape), "int32")

    def encode(image: Tensor) -> Tensor:
        # ONNX knows neither the loop over blocks of `nearest_codes` nor Keras's argmax.
        scores = model.quantizer.scores(model.encode(image))
        return ops.cast(ops.top_k(scores, 1)[1][..., 0], "int32")

    files = {
        "encoder.onnx": Export(encode, {"image": example_images}, "codes"),
        "decoder.onnx": Export(model.decode_codes, {"codes": example_codes}, "image"),
    }
    return files, {"vqvae_hash": model.file_hash}
