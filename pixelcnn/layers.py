"""Layers of the gated PixelCNN: masked convolutions, gated blocks of two stacks, attention."""

import keras
import numpy as np
from keras import layers, ops

from pixelcnn.masks import horizontal_mask, vertical_mask

__all__ = ["Condition", "GatedBlock", "MaskedConv2D", "RowAttention", "gate"]

MASKS = {"vertical": vertical_mask, "horizontal": horizontal_mask}


def gate(features):
    """tanh(one half) * sigmoid(the other half) of the channels.

    Reference:
        arXiv 1606.05328, equation 2.
    """
    value, openness = ops.split(features, 2, axis=-1)
    return ops.tanh(value) * ops.sigmoid(openness)


@keras.saving.register_keras_serializable(package="pixelcnn")
class MaskedConv2D(layers.Conv2D):
    """Convolution of one of the two stacks: sees only what comes before in raster order.

    The kernel covers the box that the stack can see, and the mask is applied inside the
    convolution: no step, load or assignment can put weight where it must not be.

    Args:
        filters: int, width of the output.
        size: odd int, side of the square kernel of which the box is a part.
        stack: "vertical" or "horizontal".
        mask_type: "A" (first layer: hides the centre, in the vertical stack its row) or "B".
        **kwargs: as `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape (batch, rows, cols, channels).

    Returns:
        Tensor of shape (batch, rows, cols, filters).
    """

    def __init__(self, filters, size, stack, mask_type, **kwargs):
        self.mask = MASKS[stack](size, mask_type)
        super().__init__(filters, self.mask.shape, padding="valid", **kwargs)
        self.size, self.stack, self.mask_type = size, stack, mask_type
        above, left = (side - 1 for side in self.mask.shape)
        if stack == "vertical":
            left = right = left // 2
        else:
            right = 0
        self.above, self.sides = above, (left, right)

    def call(self, inputs):
        return self.slide(ops.pad(inputs, ((0, 0), (self.above, 0), (0, 0), (0, 0))))

    def slide(self, inputs):
        """The convolution of rows that come with the `above` rows before them."""
        inputs = ops.pad(inputs, ((0, 0), (0, 0), self.sides, (0, 0)))
        # The sampler calls this from outside a call, where Keras casts no weight by itself.
        found = self.convolution_op(inputs, ops.cast(self.kernel, inputs.dtype))
        return found + ops.cast(self.bias, inputs.dtype) if self.use_bias else found

    @property
    def matrix(self):
        """The masked kernel as a matrix: flattened box -> filters."""
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
    """One gated layer of both stacks.

        features = conv_v(v) + V s             rows above, and the condition
        v' = v + gate(features)
        y = gate(conv_h(h) + W features)       the row so far, and the rows above
        h' = h + U y;   skip = Z y

    Deviations from the paper: the condition enters the horizontal stack through the vertical one's
    features, the vertical stack has a residual path too, and there are skips to the output.

    Args:
        channels: int, width of both stacks and of the skip.
        kernel_size: odd int.
        dropout: float in [0, 1), share of the gated features of the horizontal stack that training
            drops.
        seed: int, for the dropout.
        **kwargs: as `keras.layers.Layer`.

    Call arguments:
        vertical: float tensor of shape (batch, rows, cols, channels).
        horizontal: the same.
        condition: float tensor of shape (batch, rows, cols, any).
        training: bool.

    Returns:
        The two stacks' new features and the skip, each of shape (batch, rows, cols, channels).

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
        wide = (*vertical_shape[:-1], 2 * self.channels)
        self.vertical.build(vertical_shape)
        self.horizontal.build(horizontal_shape)
        self.from_condition.build(condition_shape)
        self.from_vertical.build(wide)
        self.residual.build(horizontal_shape)
        self.skip.build(horizontal_shape)

    def call(self, vertical, horizontal, condition, training=False):
        features = self.vertical(vertical) + self.from_condition(condition)
        row = self.horizontal(horizontal) + self.from_vertical(features)
        gated = self.drop(gate(row), training=training)
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
    """Causal attention within a row: each place of the horizontal stack to itself and its left.

    Where a row of the scan crosses the head it carries what convolutions forget on the way: the
    mirror twin on the other side. Queries and keys know their place by the condition.

    Args:
        heads: int, must divide the channels of its input.
        **kwargs: as `keras.layers.Layer`.

    Call arguments:
        horizontal: float tensor of shape (batch, rows, cols, channels).
        condition: float tensor of shape (batch, rows, cols, any).

    Returns:
        Tensor of the shape of `horizontal`: it plus what was attended to.

    Reference:
        Vaswani et al. 2017, arXiv 1706.03762, section 3.2; Ho et al. 2019, arXiv 1912.12180, whose
        row attention this is.
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
        # Adds nothing at first: attention at random would only be noise to learn away.
        self.mix = dense("mix", horizontal_shape, kernel_initializer="zeros")

    def call(self, horizontal, condition):
        query, key, value = self.project(horizontal, condition)
        mask = np.tri(horizontal.shape[2], dtype=bool)
        return horizontal + self.attend(query, key, value, mask)

    def project(self, horizontal, condition):
        """Queries, keys and values, all heads side by side in the channels."""
        with_position = ops.concatenate([horizontal, condition], axis=-1)
        return self.query(with_position), self.key(with_position), self.value(horizontal)

    def attend(self, query, key, value, mask):
        """What the queries find: the values, weighted by softmax(query key / sqrt(size)).

        Args:
            query: tensor of shape (..., queries, channels).
            key, value: tensors of shape (..., keys, channels).
            mask: bool array or tensor, broadcast to (queries, keys): where queries may look.
        """
        query, key, value = (self._split(part) for part in (query, key, value))
        # Scaled before the sum, which float16 might not hold.
        scores = (query / query.shape[-1] ** 0.5) @ ops.swapaxes(key, -1, -2)
        scores = ops.where(mask, ops.cast(scores, "float32"), -1e9)
        found = ops.cast(ops.softmax(scores), value.dtype) @ value
        found = ops.swapaxes(found, -3, -2)
        return self.mix(ops.reshape(found, (*ops.shape(found)[:-2], value.shape[-1] * self.heads)))

    def attend_once(self, query, key, value, mask):
        """`attend` of a single query for each of a batch, in sums.

        A sampler asks for one at a time, and products of so small matrices take TensorFlow longer
        to hand out than to compute.

        Args:
            query: tensor of shape (batch, channels).
            key, value: tensors of shape (batch, keys, channels).
            mask: bool tensor of shape (keys,).
        """
        heads, size = self.heads, query.shape[-1] // self.heads
        query = ops.reshape(query / size**0.5, (-1, 1, heads, size))
        key, value = (ops.reshape(each, (*each.shape[:2], heads, size)) for each in (key, value))
        scores = ops.cast(ops.sum(query * key, axis=-1), "float32")
        scores += ops.where(mask, 0.0, -1e9)[:, None]
        weights = ops.exp(scores - ops.max(scores, axis=1, keepdims=True))
        weights /= ops.sum(weights, axis=1, keepdims=True)
        found = ops.sum(ops.cast(weights, value.dtype)[..., None] * value, axis=1)
        return self.mix(ops.reshape(found, (-1, heads * size)))

    def _split(self, values):
        """(..., places, channels) -> (..., heads, places, size)."""
        shape = (*ops.shape(values)[:-1], self.heads, values.shape[-1] // self.heads)
        return ops.swapaxes(ops.reshape(values, shape), -3, -2)

    def compute_output_shape(self, horizontal_shape, condition_shape):
        return horizontal_shape

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable(package="pixelcnn")
class Condition(layers.Layer):
    """What is known of every code before any is: its place in the grid, the slice's position.

    The position, continuous in [0, 1], enters as cosines of rising frequency, so that levels of the
    head between the training slices lie between them here too.

    Args:
        grid_shape: (rows, cols).
        width: int, channels of the output.
        frequencies: int, number of cosines, the first of which is constant; 0 leaves the position
            out.
        **kwargs: as `keras.layers.Layer`.

    Call arguments:
        position: float tensor of shape (batch,).

    Returns:
        Tensor of shape (batch, rows, cols, width).
    """

    def __init__(self, grid_shape, width, frequencies, **kwargs):
        # float32 whatever the policy: the last cosines turn often.
        super().__init__(autocast=False, **kwargs)
        self.grid_shape, self.width, self.frequencies = tuple(grid_shape), width, frequencies
        shared = {"activation": "silu", "dtype": self.dtype_policy}
        self.embed = layers.Dense(width, name="embed", **shared)
        self.mix = layers.Dense(width, name="mix", **shared)

    def build(self, position_shape):
        shape = (*self.grid_shape, self.width)
        self.place = self.add_weight(name="place", shape=shape, initializer="random_normal")
        if self.frequencies:
            self.embed.build((None, self.frequencies))
        self.mix.build((None, *shape))

    def call(self, position):
        place = ops.cast(self.place, self.compute_dtype)
        place = ops.broadcast_to(place, (ops.shape(position)[0], *place.shape))
        if self.frequencies:
            turns = ops.cast(position, "float32")[:, None] * np.arange(
                self.frequencies, dtype="float32"
            )
            place += self.embed(ops.cos(np.pi * turns))[:, None, None]
        return self.mix(ops.silu(place))

    def compute_output_shape(self, position_shape):
        return (*position_shape, *self.grid_shape, self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "grid_shape": self.grid_shape,
            "width": self.width,
            "frequencies": self.frequencies,
        }
