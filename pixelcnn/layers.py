"""Layers of the gated PixelCNN: masked convolution, gated block, row attention, conditioning."""

import keras
import numpy as np
from keras import layers, ops

from brainslices.types import Tensor
from pixelcnn.condition_values import ConditionValue, cosines
from pixelcnn.masks import stack_mask

__all__ = ["Condition", "GatedBlock", "MaskedConv2D", "RowAttention", "gate"]


def gate(features: Tensor) -> Tensor:
    """Apply the gated activation: tanh(first half) * sigmoid(second half) of the channels.

    Reference:
        arXiv 1606.05328, equation 2.
    """
    value, openness = ops.split(features, 2, axis=-1)
    return ops.tanh(value) * ops.sigmoid(openness)


@keras.saving.register_keras_serializable(package="pixelcnn")
class MaskedConv2D(layers.Conv2D):
    """Causal convolution of the vertical or the horizontal stack.

    The mask is applied inside the convolution, so that no optimizer step, loading or assignment
    can put weight on a masked cell.

    Args:
        filters: int, output channels.
        size: odd int, side of the square kernel; the stored kernel is the part that `stack` uses.
        stack: "vertical" or "horizontal".
        mask_type: "A" (first layer: masks the centre, in the vertical stack its row) or "B".
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape (batch, rows, cols, channels).

    Returns:
        Tensor of shape (batch, rows, cols, filters).
    """

    def __init__(self, filters, size, stack, mask_type, **kwargs):
        self.mask = stack_mask(stack, size, mask_type)
        super().__init__(filters, self.mask.shape, padding="valid", **kwargs)
        self.size, self.stack, self.mask_type = size, stack, mask_type
        # Padding: rows above, and columns at either side.
        self.above = self.mask.shape[0] - 1
        self.sides = (size // 2, size // 2 if stack == "vertical" else 0)

    def call(self, inputs):
        return self.convolve_rows(ops.pad(inputs, ((0, 0), (self.above, 0), (0, 0), (0, 0))))

    def convolve_rows(self, inputs: Tensor) -> Tensor:
        """Convolve rows that are preceded by the `above` rows that the kernel needs."""
        inputs = ops.pad(inputs, ((0, 0), (0, 0), self.sides, (0, 0)))
        # The sampler calls this outside of `call`, where Keras does not cast weights.
        outputs = self.convolution_op(inputs, ops.cast(self.kernel, inputs.dtype))
        return outputs + ops.cast(self.bias, inputs.dtype) if self.use_bias else outputs

    @property
    def matrix(self) -> Tensor:
        """The masked kernel as a matrix, from the flattened window to the filters."""
        return ops.reshape(self._masked(self.kernel), (-1, self.filters))

    def _masked(self, kernel):
        if self.mask.all():
            return kernel
        return kernel * ops.cast(self.mask[:, :, None, None], kernel.dtype)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self._masked(kernel))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        config = super().get_config()
        del config["kernel_size"], config["padding"]
        own = {"size": self.size, "stack": self.stack, "mask_type": self.mask_type}
        return {**config, **own}


@keras.saving.register_keras_serializable(package="pixelcnn")
class GatedBlock(layers.Layer):
    """Gated block of the vertical stack v and the horizontal stack h, with condition s.

        features = conv_v(v) + V s
        v' = v + gate(features)
        y = gate(conv_h(h) + W features)
        h' = h + U y;   skip = Z y

    Deviations from the paper: the condition enters the horizontal stack through the features of
    the vertical one, the vertical stack has a residual connection too, and there are skip
    connections to the output.

    Args:
        channels: int, channels of both stacks and of the skip connection.
        kernel_size: odd int.
        dropout: float in [0, 1), dropout rate of the gated features of the horizontal stack.
        seed: int, seeds the dropout.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        vertical, horizontal: float tensors of shape (batch, rows, cols, channels).
        condition: float tensor of shape (batch, rows, cols, any).
        training: bool.

    Returns:
        The new features of the vertical and the horizontal stack, and the skip connection, each of
        shape (batch, rows, cols, channels).

    Reference:
        van den Oord et al. 2016, arXiv 1606.05328, equations 2 and 5 and figure 2.
    """

    def __init__(self, channels, kernel_size, dropout, seed, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.kernel_size = channels, kernel_size
        self.dropout, self.seed = dropout, seed
        shared = {"dtype": self.dtype_policy}
        convolution = {"filters": 2 * channels, "size": kernel_size, "mask_type": "B", **shared}
        self.vertical = MaskedConv2D(stack="vertical", name="vertical", **convolution)
        self.horizontal = MaskedConv2D(stack="horizontal", name="horizontal", **convolution)
        self.from_condition = layers.Dense(
            2 * channels, use_bias=False, name="from_condition", **shared
        )
        self.from_vertical = layers.Dense(2 * channels, name="from_vertical", **shared)
        self.drop = layers.Dropout(dropout, seed=seed, name="drop", **shared)
        self.residual = layers.Dense(channels, name="residual", **shared)
        self.skip = layers.Dense(channels, name="skip", **shared)

    def build(self, vertical_shape, horizontal_shape, condition_shape):
        self.vertical.build(vertical_shape)
        self.horizontal.build(horizontal_shape)
        self.from_condition.build(condition_shape)
        self.from_vertical.build((*vertical_shape[:-1], 2 * self.channels))
        self.residual.build(horizontal_shape)
        self.skip.build(horizontal_shape)

    def call(self, vertical, horizontal, condition, training=False):
        features = self.vertical(vertical) + self.from_condition(condition)
        gated = gate(self.horizontal(horizontal) + self.from_vertical(features))
        gated = self.drop(gated, training=training)
        return vertical + gate(features), horizontal + self.residual(gated), self.skip(gated)

    def compute_output_shape(self, vertical_shape, horizontal_shape, condition_shape):
        return vertical_shape, horizontal_shape, horizontal_shape

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "kernel_size": self.kernel_size,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="pixelcnn")
class RowAttention(layers.Layer):
    """Causal multi-head self-attention within each row of the horizontal stack.

    It models dependencies beyond the receptive field of the convolutions, such as between
    mirror-symmetric cells of a row. The condition encodes the cell in queries and keys.

    Args:
        heads: int, must divide the channels of the input.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        horizontal: float tensor of shape (batch, rows, cols, channels).
        condition: float tensor of shape (batch, rows, cols, any).

    Returns:
        Tensor of the shape of `horizontal`: its sum with the output of the attention.

    Reference:
        Vaswani et al. 2017, arXiv 1706.03762, section 3.2; row attention: Ho et al. 2019,
        arXiv 1912.12180.
    """

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, horizontal_shape, condition_shape):
        channels = horizontal_shape[-1]
        with_position = (*horizontal_shape[:-1], channels + condition_shape[-1])

        def dense(name, shape, **options):
            layer = layers.Dense(channels, name=name, dtype=self.dtype_policy, **options)
            layer.build(shape)
            return layer

        self.query, self.key = dense("query", with_position), dense("key", with_position)
        self.value = dense("value", horizontal_shape)
        # Zeros, so that the untrained attention adds nothing: random attention is only noise.
        self.mix = dense("mix", horizontal_shape, kernel_initializer="zeros")

    def call(self, horizontal, condition):
        query, key, value = self.project(horizontal, condition)
        causal_mask = np.tri(horizontal.shape[2], dtype=bool)
        return horizontal + self.attend(query, key, value, causal_mask)

    def project(self, horizontal: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (..., channels) of features and condition (..., any).

        The heads are side by side in the channels.
        """
        with_position = ops.concatenate([horizontal, condition], axis=-1)
        return self.query(with_position), self.key(with_position), self.value(horizontal)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Compute scaled dot-product attention, softmax(query key^T / sqrt(size)) value, mixed.

        Args:
            query: tensor of shape (..., queries, channels).
            key: tensor of shape (..., keys, channels).
            value: tensor of shape (..., keys, channels).
            mask: bool array or tensor that broadcasts to (queries, keys), True where a query
                attends to a key.

        Returns:
            Tensor of the shape of `query`.
        """
        query, key, value = (self._split_heads(tensor) for tensor in (query, key, value))
        # Scaled before the product, which may overflow float16.
        scores = (query / query.shape[-1] ** 0.5) @ ops.swapaxes(key, -1, -2)
        scores = ops.where(mask, ops.cast(scores, "float32"), -1e9)
        outputs = ops.cast(ops.softmax(scores), value.dtype) @ value
        outputs = ops.swapaxes(outputs, -3, -2)
        channels = value.shape[-1] * self.heads
        return self.mix(ops.reshape(outputs, (*ops.shape(outputs)[:-2], channels)))

    def attend_once(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Compute `attend` for a single query per batch entry, by sums.

        The sampler has one query at a time: TensorFlow takes longer to dispatch matrix products
        that small than to compute them.

        Args:
            query: tensor of shape (batch, channels).
            key: tensor of shape (batch, keys, channels).
            value: tensor of shape (batch, keys, channels).
            mask: bool tensor of shape (keys,).

        Returns:
            Tensor of shape (batch, channels).
        """
        heads, size = self.heads, query.shape[-1] // self.heads
        query = ops.reshape(query / size**0.5, (-1, 1, heads, size))
        key = ops.reshape(key, (*key.shape[:2], heads, size))
        value = ops.reshape(value, (*value.shape[:2], heads, size))
        scores = ops.cast(ops.sum(query * key, axis=-1), "float32")
        scores += ops.where(mask, 0.0, -1e9)[:, None]
        weights = ops.exp(scores - ops.max(scores, axis=1, keepdims=True))
        weights /= ops.sum(weights, axis=1, keepdims=True)
        outputs = ops.sum(ops.cast(weights, value.dtype)[..., None] * value, axis=1)
        return self.mix(ops.reshape(outputs, (-1, heads * size)))

    def _split_heads(self, values):
        """(..., cells, channels) -> (..., heads, cells, size)."""
        shape = (*ops.shape(values)[:-1], self.heads, values.shape[-1] // self.heads)
        return ops.swapaxes(ops.reshape(values, shape), -3, -2)

    def compute_output_shape(self, horizontal_shape, condition_shape):
        return horizontal_shape

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable(package="pixelcnn")
class Condition(layers.Layer):
    """Conditioning of every code: its grid cell, the slice position, and the subject's attributes.

    The position, continuous in [0, 1], enters as cosines of increasing frequency, so that the
    network interpolates between the positions of the training slices.

    Args:
        grid_shape: (rows, cols).
        width: int, output channels.
        frequencies: int, number of cosines, the first of which is constant; 0 leaves the position
            out.
        categories: for each further condition its number of categories, 0 for a number.
        augmentations: int, indicators of how a training grid was augmented.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        position: float tensor of shape (batch,); or (batch, 1 + conditions): the position, then
            each condition as in `ConditionValue`. Without them all conditions are unknown.
        augmentation: float tensor of shape (batch, augmentations), 0 or 1; by default 0.

    Returns:
        Tensor of shape (batch, rows, cols, width).
    """

    def __init__(self, grid_shape, width, frequencies, categories=(), augmentations=0, **kwargs):
        # No autocast: half precision is too coarse for the highest frequencies.
        super().__init__(autocast=False, **kwargs)
        self.grid_shape, self.width, self.frequencies = tuple(grid_shape), width, frequencies
        shared = {"activation": "silu", "dtype": self.dtype_policy}
        self.embed = layers.Dense(width, name="embed", **shared)
        self.categories = tuple(categories)
        self.values = [
            ConditionValue(width, count, dtype=self.dtype_policy) for count in self.categories
        ]
        self.augmentations = augmentations
        self.mix = layers.Dense(width, name="mix", **shared)

    def build(self, position_shape):
        shape = (*self.grid_shape, self.width)
        self.cell_embedding = self.add_weight(
            name="place", shape=shape, initializer="random_normal"
        )
        if self.frequencies:
            self.embed.build((None, self.frequencies))
        self.mix.build((None, *shape))
        for value in self.values:
            value.build((None,))
        if self.augmentations:
            # Without a bias: samples, which are not augmented, are independent of it.
            self.augmentation_embedding = self.add_weight(
                name="augmentation", shape=(self.augmentations, self.width), initializer="zeros"
            )

    def call(self, position, augmentation=None):
        conditions = [-ops.ones_like(position)] * len(self.values)
        if len(position.shape) == 2:
            position, *conditions = ops.unstack(position, 1 + len(self.values), axis=1)
        features = ops.cast(self.cell_embedding, self.compute_dtype)
        features = ops.broadcast_to(features, (ops.shape(position)[0], *features.shape))
        if self.frequencies:
            features += self.embed(cosines(position, self.frequencies))[:, None, None]
        for embed_value, value in zip(self.values, conditions, strict=True):
            features += embed_value(value)[:, None, None]
        if self.augmentations and augmentation is not None:
            embedded = ops.matmul(augmentation, self.augmentation_embedding)
            features += ops.cast(embedded, self.compute_dtype)[:, None, None]
        return self.mix(ops.silu(features))

    def compute_output_shape(self, position_shape):
        return (*position_shape[:1], *self.grid_shape, self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "grid_shape": self.grid_shape,
            "width": self.width,
            "frequencies": self.frequencies,
            "categories": self.categories,
            "augmentations": self.augmentations,
        }
