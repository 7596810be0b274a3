"""Features of the slice position and of attributes of the subject."""

import keras
import numpy as np
from keras import layers, ops

from brainslices.types import Tensor

__all__ = ["ConditionValue", "cosines"]

# Cosine features of a numeric condition.
NUMBER_FREQUENCIES = 8


def cosines(values: Tensor, frequencies: int) -> Tensor:
    """Encode values in [0, 1], of shape (batch,), as cosines of increasing frequency."""
    half_turns = ops.cast(values, "float32")[:, None] * np.arange(frequencies, dtype="float32")
    return ops.cos(np.pi * half_turns)


@keras.saving.register_keras_serializable(package="pixelcnn")
class ConditionValue(layers.Layer):
    """Features of one condition: of a number its cosines, of a category a learned vector.

    A value that is not known has a learned vector too.

    Args:
        width: int, output channels.
        categories: int, number of categories; 0 for a number.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        value: float tensor of shape (batch,): a number in [0, 1], or the index of a category; -1 if
            it is not known.

    Returns:
        Tensor of shape (batch, width).
    """

    def __init__(self, width, categories, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.width, self.categories = width, categories
        self.embed = layers.Dense(width, name="embed", activation="silu", dtype=self.dtype_policy)

    def build(self, value_shape):
        # Row 0 is the unknown value.
        self.table = self.add_weight(
            name="table", shape=(1 + self.categories, self.width), initializer="random_normal"
        )
        if not self.categories:
            self.embed.build((None, NUMBER_FREQUENCIES))

    def call(self, value):
        table = ops.cast(self.table, self.compute_dtype)
        if self.categories:
            return ops.take(table, ops.cast(value, "int32") + 1, axis=0)
        number = self.embed(cosines(value, NUMBER_FREQUENCIES))
        return ops.where((value >= 0)[:, None], number, table[0])

    def compute_output_shape(self, value_shape):
        return (*value_shape, self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "categories": self.categories}
