"""The `seed` network as tutorials commonly write it, as a baseline."""

import keras
from keras import layers, ops

from brainslices.types import Tensor

__all__ = ["TutorialVQVAE", "one_hot_quantize"]

CHANNELS, NUM_EMBEDDINGS, EMBEDDING_DIM, COMMITMENT_COST = (32, 64), 128, 16, 0.25


def one_hot_quantize(latents: Tensor, codebook: Tensor) -> Tensor:
    """Quantise through the full matrix of distances and the full matrix of one-hot rows.

    Args:
        latents: float32 tensor of shape (n, embedding_dim).
        codebook: float32 tensor of shape (num_embeddings, embedding_dim).

    Returns:
        float32 tensor of shape (n, embedding_dim), the nearest codes.
    """
    distances = (
        ops.sum(ops.square(latents), axis=1, keepdims=True)
        - 2 * ops.matmul(latents, ops.transpose(codebook))
        + ops.sum(ops.square(codebook), axis=1)
    )
    rows = ops.one_hot(ops.argmin(distances, axis=1), codebook.shape[0], dtype=latents.dtype)
    return ops.matmul(rows, codebook)


class _OneHotQuantizer(layers.Layer):
    """Straight-through quantiser with a codebook trained by gradient."""

    def build(self, input_shape):
        self.codebook = self.add_weight(
            name="codebook", shape=(NUM_EMBEDDINGS, EMBEDDING_DIM), initializer="uniform"
        )

    def call(self, inputs):
        latents = ops.reshape(inputs, (-1, EMBEDDING_DIM))
        quantized = ops.reshape(one_hot_quantize(latents, self.codebook), ops.shape(inputs))
        commitment_loss = ops.mean(ops.square(inputs - ops.stop_gradient(quantized)))
        codebook_loss = ops.mean(ops.square(ops.stop_gradient(inputs) - quantized))
        self.add_loss(COMMITMENT_COST * commitment_loss + codebook_loss)
        return inputs + ops.stop_gradient(quantized - inputs)


class TutorialVQVAE(keras.Model):
    """VQ-VAE of whole images: two strided convolutions, one-hot quantiser, mirrored decoder.

    Args:
        variance: float, variance of the training intensities.
    """

    def __init__(self, variance: float):
        super().__init__(name="tutorial_vqvae")
        self.variance = variance
        strided = {"strides": 2, "padding": "same", "activation": "relu"}
        self.network = keras.Sequential(
            [
                *(layers.Conv2D(width, 3, **strided) for width in CHANNELS),
                layers.Conv2D(EMBEDDING_DIM, 1, padding="same"),
                _OneHotQuantizer(),
                *(layers.Conv2DTranspose(width, 3, **strided) for width in reversed(CHANNELS)),
                layers.Conv2DTranspose(1, 3, padding="same"),
            ]
        )

    def call(self, inputs):
        return self.network(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(x - y_pred)) / self.variance + sum(self.losses)
