"""Encoder and decoder of the VQ-VAE: strided convolutions and residual blocks."""

import functools

import keras
from keras import layers

__all__ = ["PositionBias", "build_decoder", "build_encoder"]


@keras.saving.register_keras_serializable(package="vqvae")
class PositionBias(layers.Layer):
    """Add a trained vector to each position of a grid.

    The slices are registered to one frame, so the position alone is informative, and a convolution
    does not see it.

    Call arguments:
        inputs: float tensor of shape (batch, rows, cols, channels), rows and cols known.

    Returns:
        Tensor of the same shape and dtype.
    """

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=input_shape[1:], initializer="zeros")

    def call(self, inputs):
        return inputs + self.bias

    def compute_output_shape(self, input_shape):
        return input_shape


def build_encoder(
    image_shape: tuple[int, int, int],
    channels: tuple[int, ...],
    kernel_size: int,
    blocks: int,
    embedding_dim: int,
    dtype: keras.DTypePolicy | str,
) -> keras.Model:
    """Build the network from a standardised image to latents.

    Args:
        image_shape: (rows, cols, 1), both divisible by `2 ** len(channels)`.
        channels: width of each strided convolution, which halves rows and cols.
        kernel_size: side of the strided convolutions.
        blocks: number of residual blocks on the code grid.
        embedding_dim: width of the latents.
        dtype: dtype policy of the layers.

    Returns:
        Model (batch, rows, cols, 1) -> (batch, r, c, embedding_dim).
    """
    convolution = functools.partial(layers.Conv2D, padding="same", dtype=dtype)
    inputs = x = keras.Input(image_shape)
    for number, width in enumerate(channels):
        x = _relu(x) if number else x
        x = convolution(width, kernel_size, strides=2)(x)
    for _ in range(blocks):
        x = _residual_block(x, convolution)
    return keras.Model(inputs, convolution(embedding_dim, 3)(_relu(x)), name="encoder")


def build_decoder(
    grid_shape: tuple[int, int],
    channels: tuple[int, ...],
    kernel_size: int,
    blocks: int,
    embedding_dim: int,
    dtype: keras.DTypePolicy | str,
) -> keras.Model:
    """Build the network from quantised latents to a standardised image; mirrors `build_encoder`.

    Args:
        grid_shape: (r, c) of the code grid.
        channels: the encoder's widths, in its order.
        kernel_size: side of the transposed convolutions, each of which doubles rows and cols.
        blocks: number of residual blocks on the code grid.
        embedding_dim: width of the latents.
        dtype: dtype policy of all layers but the last, which is float32.

    Returns:
        Model (batch, r, c, embedding_dim) -> float32 (batch, rows, cols, 1).
    """
    convolution = functools.partial(layers.Conv2D, padding="same", dtype=dtype)
    upsampling = functools.partial(
        layers.Conv2DTranspose, kernel_size=kernel_size, strides=2, padding="same"
    )
    inputs = x = keras.Input((*grid_shape, embedding_dim))
    x = PositionBias(dtype=dtype)(convolution(channels[-1], 3)(x))
    for _ in range(blocks):
        x = _residual_block(x, convolution)
    for width in reversed(channels[:-1]):
        x = upsampling(width, dtype=dtype)(_relu(x))
    # Not in half precision: bfloat16 has steps of 1/256 just below 1.
    return keras.Model(inputs, upsampling(1, dtype="float32")(_relu(x)), name="decoder")


def _residual_block(x, convolution):
    """Return x + conv1(relu(conv3(relu(x)))), as in section 4.1 of arXiv 1711.00937."""
    width = x.shape[-1]
    y = convolution(width, 3)(_relu(x))
    y = convolution(width, 1)(_relu(y))
    return layers.Add(dtype=x.dtype)([x, y])


def _relu(x):
    return layers.Activation("relu", dtype=x.dtype)(x)
