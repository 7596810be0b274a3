"""The gated PixelCNN: code grid -> logits of each code given the codes before it."""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
from keras import layers, ops

from brainslices.data.code_grids import check_codes
from brainslices.distributed.collectives import replica_count
from brainslices.runs.loading import load_model
from brainslices.schema import CODEBOOK_SIZE, NATURAL, SHAPE, check_arguments
from brainslices.types import PathLike, Tensor
from pixelcnn.conditions import as_variables, encode_request
from pixelcnn.config import PixelCNNConfig
from pixelcnn.layers import Condition, GatedBlock, MaskedConv2D, RowAttention
from pixelcnn.masks import scan_order

__all__ = ["PixelCNN"]

# Indicators of a training grid: mirrored, shifted.
AUGMENTATIONS = 2
ARGUMENTS = {"grid_shape": SHAPE, "num_embeddings": CODEBOOK_SIZE, "seed": NATURAL}


@keras.saving.register_keras_serializable(package="pixelcnn")
class PixelCNN(keras.Model):
    """Autoregressive prior over code grids, given the slice position and attributes of the subject.

    p(codes | position) is the product, in scan order, of p(code | codes before it, position).
    Wherever a model takes positions, of shape (batch,), it also takes them with the conditions, of
    shape (batch, 1 + conditions), as `with_conditions` makes them.

    Args:
        grid_shape: (r, c) of the code grid.
        num_embeddings: int, codebook size.
        seed: int, seeds the dropout.
        dtype: dtype policy of the layers; logits and losses are always float32.
        name: str, the Keras name.
        condition_variables: kinds and ranges of `config.conditions`, each a `Variable` or a dict of
            its fields.
        **config: the fields of `PixelCNNConfig`.

    Call arguments:
        inputs: `{"codes", "position"}`: int tensor of shape (batch, r, c), codes from 0 to
            num_embeddings - 1; and float tensor of shape (batch,), positions in [0, 1], which a
            prior with `position_frequencies=0` ignores. In a training also "augmentation", float
            tensor of shape (batch, 2): 1 for a grid that is mirrored, and for one that is shifted.
        training: bool.

    Returns:
        float32 logits of shape (batch, r, c, num_embeddings). The logits of a code depend only on
        the codes before it in scan order.

    Reference:
        van den Oord et al. 2016, arXiv 1606.05328.
    """

    config_type = PixelCNNConfig

    def __init__(
        self,
        grid_shape,
        num_embeddings,
        seed=0,
        dtype=None,
        name="pixelcnn",
        condition_variables=(),
        **config,
    ):
        check_arguments(ARGUMENTS, grid_shape=grid_shape, num_embeddings=num_embeddings, seed=seed)
        # No autocast: positions stay float32 under every dtype policy.
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.config = config = PixelCNNConfig(**config)
        self.grid_shape, self.num_embeddings = tuple(grid_shape), num_embeddings
        self.condition_variables = as_variables(condition_variables, config.conditions)
        self.seed = seed
        order = scan_order(self.grid_shape, config.scan)
        self.scan_shape = order.shape
        # The index in the flattened grid of each code of the scan, and the inverse.
        self.scan_order, self.inverse_order = order.ravel(), np.argsort(order.ravel())
        self._add_stacks(config)
        self._add_head(config)
        self.nats_metric = keras.metrics.Mean(name="nats_per_code", dtype="float32")

    def _add_stacks(self, config):
        shared = {"dtype": self.dtype_policy}
        self.condition = Condition(
            self.scan_shape,
            config.condition_width,
            config.position_frequencies,
            [len(variable.categories) for variable in self.condition_variables],
            AUGMENTATIONS if config.augmentation_condition else 0,
            **shared,
        )
        self.embedding = layers.Embedding(self.num_embeddings, config.channels, **shared)
        first = {"filters": config.channels, "size": config.first_kernel_size, "mask_type": "A"}
        self.first_vertical = MaskedConv2D(stack="vertical", **first, **shared)
        self.first_horizontal = MaskedConv2D(stack="horizontal", **first, **shared)
        seeds = np.random.SeedSequence(self.seed).generate_state(config.layers).tolist()
        self.blocks = [
            GatedBlock(config.channels, config.kernel_size, config.dropout, seed, **shared)
            for seed in seeds
        ]
        # Spread evenly between the blocks; the last one follows the last block.
        ends = np.linspace(0, config.layers, config.attention_layers + 1)[1:].round().astype(int)
        self.attentions = {
            str(end - 1): RowAttention(config.attention_heads, **shared) for end in ends
        }

    def _add_head(self, config):
        self.hidden = layers.Dense(config.head_width, activation="relu", dtype=self.dtype_policy)
        self.logits = layers.Dense(self.num_embeddings, dtype="float32", name="logits")

    def build(self, input_shape=None):
        grid = (None, *self.scan_shape)
        stack = (*grid, self.config.channels)
        condition = (*grid, self.config.condition_width)
        self.condition.build((None,))
        self.embedding.build(grid)
        self.first_vertical.build(stack)
        self.first_horizontal.build(stack)
        for block in self.blocks:
            block.build(stack, stack, condition)
        for attention in self.attentions.values():
            attention.build(stack, condition)
        self.hidden.build(stack)
        self.logits.build((*grid, self.config.head_width))
        self.built = True

    def call(self, inputs, training=False):
        condition = self.condition(inputs["position"], inputs.get("augmentation"))
        embedded = self.embedding(self.to_scan(inputs["codes"]))
        vertical, horizontal = self.first_vertical(embedded), self.first_horizontal(embedded)
        skips = 0.0
        for number, block in enumerate(self.blocks):
            vertical, horizontal, skip = block(vertical, horizontal, condition, training=training)
            skips += skip
            if str(number) in self.attentions:
                horizontal = self.attentions[str(number)](horizontal, condition)
        # Reordered before the head, since the logits have many times as many channels.
        return self.head(self.from_scan(skips + horizontal))

    def head(self, features: Tensor) -> Tensor:
        """Compute logits from the sum of the skip connections and the horizontal stack."""
        return self.logits(self.hidden(ops.relu(features)))

    def to_scan(self, values: Tensor) -> Tensor:
        """Reorder grids (batch, r, c, ...) to scan order (batch, scan rows, scan cols, ...)."""
        return _reorder(values, self.scan_order, self.scan_shape)

    def from_scan(self, values: Tensor) -> Tensor:
        """Reorder scans (batch, scan rows, scan cols, ...) to grid order (batch, r, c, ...)."""
        return _reorder(values, self.inverse_order, self.grid_shape)

    def log_prob(self, codes: Tensor, position: Tensor) -> Tensor:
        """Compute the log-probability of each code given the codes before it, without dropout.

        Args:
            codes: int tensor of shape (batch, r, c).
            position: float tensor of shape (batch,), in [0, 1], or with conditions.

        Returns:
            float32 tensor of shape (batch, r, c), in nats; its sum is the grid's log-probability.

        Raises:
            InputError: if an array holds anything but codes.
        """
        check_codes(codes, self.num_embeddings)
        return -self.nats(codes, self({"codes": codes, "position": position}))

    def nats(self, codes: Tensor, logits: Tensor) -> Tensor:
        """Compute the nats of each code.

        Args:
            codes: int tensor of any shape.
            logits: float32 tensor of shape (*codes.shape, num_embeddings).

        Returns:
            float32 tensor of the shape of `codes`.
        """
        # The sparse cross-entropy is three times slower under TensorFlow's op determinism.
        one_hot = ops.one_hot(codes, self.num_embeddings)
        return keras.losses.categorical_crossentropy(one_hot, logits, from_logits=True)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        nats = ops.mean(self.nats(x["codes"], y_pred))
        self.nats_metric.update_state(nats, sample_weight=ops.shape(x["codes"])[0])
        return nats / replica_count()

    def encode_conditions(self, conditions: Mapping[str, object] | None = None) -> np.ndarray:
        """Encode conditions as numbers, float32 of shape (conditions,).

        Args:
            conditions: name -> value, of any subset; the others are unknown.

        Raises:
            InputError: if the prior has no such condition, or a value is invalid.
        """
        return encode_request(self.condition_variables, conditions or {})

    def with_conditions(
        self, positions: np.ndarray, conditions: Mapping[str, object] | None = None
    ) -> np.ndarray:
        """Add conditions to slice positions.

        Args:
            positions: float array of shape (n,), in [0, 1].
            conditions: name -> value, of any subset; the others are unknown.

        Returns:
            float32 array of shape (n, 1 + conditions); of shape (n,) for a prior without.

        Raises:
            InputError: if the prior has no such condition, or a value is invalid.
        """
        encoded = self.encode_conditions(conditions)
        positions = np.asarray(positions, "float32")
        if not encoded.size:
            return positions
        return np.column_stack([positions, np.tile(encoded, (len(positions), 1))])

    @classmethod
    def from_run(cls, run: PathLike) -> "PixelCNN":
        """Load the best epoch of a trained prior, in float32 whatever its training precision.

        Args:
            run: the run folder of `train_pixelcnn.py`.

        Raises:
            InputError: if the run has another kind or format, no model yet, or a corrupt one.
        """
        return load_model(run, "pixelcnn", dtype="float32")

    def get_config(self):
        return {
            "grid_shape": self.grid_shape,
            "num_embeddings": self.num_embeddings,
            "condition_variables": [dataclasses.asdict(item) for item in self.condition_variables],
            "seed": self.seed,
            "dtype": self.dtype_policy.name,
            "name": self.name,
            **dataclasses.asdict(self.config),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "PixelCNN":
        return cls(**config)


def _reorder(values, order, shape):
    channels = values.shape[3:]
    flat = ops.reshape(values, (-1, len(order), *channels))
    return ops.reshape(ops.take(flat, order, axis=1), (-1, *shape, *channels))
