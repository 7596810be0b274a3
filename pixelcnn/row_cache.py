"""The PixelCNN as two steps, one for a row and one for a code, with cached activations."""

from typing import NamedTuple

from keras import ops

from brainslices.types import Tensor
from pixelcnn.layers import gate
from pixelcnn.model import PixelCNN

__all__ = ["KeyValue", "RowCache", "RowState", "VerticalState", "start_state"]


class VerticalState(NamedTuple):
    """Cached inputs of the vertical stack: of each layer, the rows above the current one.

    `above` of a layer is its kernel's number of rows above the centre; C are the channels.
    """

    codes: Tensor
    """Embedded codes, (batch, above, cols, C)."""
    features: tuple[Tensor, ...]
    """Input of each block, (batch, above, cols, C)."""


class KeyValue(NamedTuple):
    """Cached keys and values of one attention layer within the current row."""

    key: Tensor
    """(batch, cols, C), zeros from the current code on."""
    value: Tensor
    """As `key`."""


class RowState(NamedTuple):
    """Cached inputs of the horizontal stack within the current row.

    A window holds the cells that a kernel covers left of its centre, side by side.
    """

    codes: Tensor
    """Window of embedded codes, (batch, cells * C)."""
    windows: Tensor
    """Window of each block's input, (blocks, batch, cells * C)."""
    attended: tuple[KeyValue, ...]
    """For each attention layer."""


def start_state(model: PixelCNN, batch: int) -> VerticalState:
    """Return the state of the vertical stack before the first row of a batch of grids."""
    cols, channels = model.scan_shape[1], model.config.channels
    codes, *features = (
        ops.zeros((batch, layer.above, cols, channels), model.compute_dtype)
        for layer in (model.first_vertical, *(block.vertical for block in model.blocks))
    )
    return VerticalState(codes, tuple(features))


class RowCache:
    """The steps of cached sampling, for one batch, all in scan order.

    `advance_vertical_stack` computes the vertical stack of a row, `advance_horizontal_stack` the
    horizontal stack and the logits of a code. The caches go in and out as states; this object
    holds only the weights and the condition.

    A code's step has about a hundred operations, so small that their dispatch dominates. What the
    blocks have in common is therefore computed for all of them at once: the part of their kernels
    left of the centre, the biases of their residual connections, and their skip connections.

    Args:
        model: a built `PixelCNN`.
        position: float tensor of shape (batch,), or with conditions.
    """

    def __init__(self, model: PixelCNN, position: Tensor):
        self.model, self.batch = model, position.shape[0]
        self.cols = model.scan_shape[1]
        self.channels, self.dtype = model.config.channels, model.compute_dtype
        self.condition = model.condition(position)
        first, blocks = model.first_horizontal, model.blocks
        self.first_left_kernel = self._cast(first.matrix[: -self.channels])
        # The kernel of each block: left of the centre, stacked for all blocks; and the centre.
        kernels = [self._cast(block.horizontal.matrix) for block in blocks]
        self.left_kernels = ops.stack([kernel[: -self.channels] for kernel in kernels])
        self.centre_kernels = [kernel[-self.channels :] for kernel in kernels]
        self.residual = [self._cast(block.residual.kernel) for block in blocks]
        self.skip = ops.concatenate([self._cast(block.skip.kernel) for block in blocks])
        self.skip_bias = self._cast(sum(block.skip.bias.value for block in blocks))
        # The horizontal features are carried without biases. These are the biases accumulated
        # before each block and after the last, (blocks + 1, 1, C), to add where they are read.
        biases = [first.bias] + [block.residual.bias for block in blocks]
        accumulated = ops.cumsum(ops.stack([bias.value for bias in biases]), axis=0)
        self.biases = self._cast(accumulated)[:, None]

    def start_row(self) -> RowState:
        """Return the state before the first code of a row."""
        blocks, width = self.left_kernels.shape[:2]
        empty = self._zeros(self.cols, self.channels)
        return RowState(
            codes=self._zeros(self.first_left_kernel.shape[0]),
            windows=ops.zeros((blocks, self.batch, width), self.dtype),
            attended=tuple(KeyValue(empty, empty) for _ in self.model.attentions),
        )

    def _cast(self, weight):
        return ops.cast(weight, self.dtype)

    def _zeros(self, *shape):
        return ops.zeros((self.batch, *shape), self.dtype)

    def advance_vertical_stack(
        self, row: Tensor, state: VerticalState
    ) -> tuple[Tensor, VerticalState]:
        """Compute the vertical stack of a row.

        Args:
            row: int scalar tensor, number of the row.
            state: the state after the row above.

        Returns:
            The input of the horizontal stack's blocks, (blocks, batch, cols, 2 * C), including
            their biases and the accumulated ones; and the state after this row, but for its codes,
            which `append_row` adds.
        """
        condition = ops.take(self.condition, row, axis=1)[:, None]
        # The centre's row is masked in the first layer: any values do.
        centre = self._zeros(1, self.cols, self.channels)
        rows = ops.concatenate([state.codes, centre], axis=1)
        features = self.model.first_vertical.convolve_rows(rows)
        to_horizontal, inputs = [], []
        for number, block in enumerate(self.model.blocks):
            rows = ops.concatenate([state.features[number], features], axis=1)
            vertical = block.vertical.convolve_rows(rows) + block.from_condition(condition)
            bias = self._cast(block.horizontal.bias)
            bias += (self.biases[number] @ self.centre_kernels[number])[0]
            to_horizontal.append((block.from_vertical(vertical) + bias)[:, 0])
            inputs.append(rows[:, 1:])
            features = features + gate(vertical)
        return ops.stack(to_horizontal), VerticalState(state.codes, tuple(inputs))

    def advance_horizontal_stack(
        self, row: Tensor, col: Tensor, from_vertical: Tensor, state: RowState
    ) -> tuple[Tensor, RowState]:
        """Compute the horizontal stack of a code and its logits.

        Args:
            row: int scalar tensor.
            col: int scalar tensor.
            from_vertical: what `advance_vertical_stack` returned for this cell, (blocks, batch,
                2 * C).
            state: the state after the code on the left.

        Returns:
            float32 logits of shape (batch, num_embeddings); and the state after this code, but for
            the code itself, which `append_code` adds.
        """
        features = state.codes @ self.first_left_kernel
        block_inputs = ops.unstack(from_vertical + state.windows @ self.left_kernels)
        inputs, gated = [], []
        attended: list[KeyValue] = []
        for number, (centre, residual) in enumerate(
            zip(self.centre_kernels, self.residual, strict=True)
        ):
            inputs.append(features)
            gated.append(gate(features @ centre + block_inputs[number]))
            features = features + gated[-1] @ residual
            if str(number) in self.model.attentions:
                cached = state.attended[len(attended)]
                outputs, cached = self._attend(number, row, col, features, cached)
                features = features + outputs
                attended.append(cached)
        skips = ops.concatenate(gated, axis=-1) @ self.skip + self.skip_bias
        windows = _shift(state.windows, ops.stack(inputs) + self.biases[:-1])
        logits = self.model.head(skips + features + self.biases[-1])
        return logits, RowState(state.codes, windows, tuple(attended))

    def _attend(self, number, row, col, features, cached):
        """Return the output of the attention after a block, and its new keys and values."""
        attention = self.model.attentions[str(number)]
        condition = ops.take(ops.take(self.condition, row, axis=1), col, axis=1)
        query, *new = attention.project(features + self.biases[number + 1], condition)
        cols = ops.arange(self.cols)
        # Added to zeros: a `where` that broadcasts is slower.
        is_here = ops.cast(cols == col, self.dtype)[:, None]
        cached = KeyValue(
            *(old + is_here * value[:, None] for old, value in zip(cached, new, strict=True))
        )
        return attention.attend_once(query, cached.key, cached.value, cols <= col), cached

    def append_code(self, state: RowState, code: Tensor) -> RowState:
        """Add the code that was sampled, int of shape (batch,), to the state of its row."""
        return state._replace(codes=_shift(state.codes, self.model.embedding(code)))

    def append_row(self, state: VerticalState, codes: Tensor) -> VerticalState:
        """Add the codes of the row, int of shape (batch, cols), to the vertical state."""
        embedded = self.model.embedding(codes)[:, None]
        return state._replace(codes=ops.concatenate([state.codes, embedded], axis=1)[:, 1:])


def _shift(window, new):
    """Shift a window of cells, side by side in the channels, by one cell."""
    if window.shape[-1] == new.shape[-1]:
        return new
    return ops.concatenate([window, new], axis=-1)[..., new.shape[-1] :]
