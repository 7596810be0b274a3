"""The prior as a TensorFlow Probability distribution; needs the TensorFlow backend."""

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from brainslices.errors import InputError
from brainslices.types import Tensor
from pixelcnn.logits import append_unconditional, apply_guidance, filter_logits
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import BATCH_SIZE, MASKED, Sampler

__all__ = ["CodePrior"]


class CodePrior(tfp.distributions.Distribution):
    """Distribution over code grids of slices at given slice positions.

        p(codes) = product over the codes, in scan order, of p(code | codes before it, position)

    `sample` is the cached exact sampler, `log_prob` a forward pass. Guidance, temperature, top-k
    and top-p change the distribution itself: `log_prob` returns the log-probability with which
    `sample` returns a grid.

    Args:
        model: a built `PixelCNN`.
        position: float tensor of any shape, the batch shape: slice positions in [0, 1].
        temperature: positive float, divides the logits.
        conditions: float tensor of shape (..., conditions) as `PixelCNN.encode_conditions` returns
            it, or None: unknown. Its leading axes broadcast with those of `position`.
        validate_args: bool, check positions and codes when the graph runs.
        allow_nan_stats: bool, as in `tfp.distributions.Distribution`.
        name: str.
        **limits: `top_k`, `top_p` and `guidance` of `Sampler`.

    Raises:
        InputError: if the backend is not TensorFlow, `temperature`, `top_k`, `top_p` or `guidance`
            is out of its range, or `conditions` is of another width than the prior's.

    Example:
        >>> prior = CodePrior(PixelCNN.from_run("runs/prior"), [0.25, 0.5])  # doctest: +SKIP
        >>> codes = prior.sample(8, seed=(0, 1))  # doctest: +SKIP
        >>> codes.shape, prior.log_prob(codes).shape  # doctest: +SKIP
        (TensorShape([8, 2, 22, 26]), TensorShape([8, 2]))

    Reference:
        van den Oord et al. 2016, arXiv 1606.05328, equation 1.
    """

    def __init__(
        self,
        model: PixelCNN,
        position: Tensor,
        temperature: float = 1.0,
        conditions: Tensor | None = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "CodePrior",
        **limits: Any,
    ):
        parameters = dict(locals())
        parameters |= parameters.pop("limits")  # each by its name, for `copy`
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                "CodePrior needs the TensorFlow backend; use `Sampler` under others. "
                f"Received: KERAS_BACKEND={keras.backend.backend()!r}."
            )
        with tf.name_scope(name) as name:
            self._model = model
            self._sampler = Sampler(model, temperature, **limits)
            self._position = tf.convert_to_tensor(position, tf.float32, name="position")
            if conditions is None:
                conditions = model.encode_conditions()
            self._conditions = tf.convert_to_tensor(conditions, tf.float32, name="conditions")
            if self._conditions.shape[-1] != len(model.condition_variables):
                raise InputError(
                    f"`conditions` must have {len(model.condition_variables)} columns, as many as "
                    f"the prior has conditions. Received: shape {self._conditions.shape}."
                )
            super().__init__(
                dtype=tf.int32,
                reparameterization_type=tfp.distributions.NOT_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype: object, num_classes: int | None = None) -> dict:
        return {
            "position": tfp.util.ParameterProperties(),
            "conditions": tfp.util.ParameterProperties(event_ndims=1),
        }

    @property
    def model(self) -> PixelCNN:
        """The `PixelCNN`."""
        return self._model

    @property
    def position(self) -> tf.Tensor:
        """Slice positions, a float32 tensor of the batch shape."""
        return self._position

    @property
    def conditions(self) -> tf.Tensor:
        """Encoded conditions, a float32 tensor of shape (..., conditions)."""
        return self._conditions

    def _inputs(self, shape):
        """The position of each grid, with its conditions if the prior has any, flattened."""
        position = tf.reshape(tf.broadcast_to(self.position, shape), [-1])
        width = len(self.model.condition_variables)
        if not width:
            return position
        conditions = tf.broadcast_to(self.conditions, tf.concat([shape, [width]], axis=0))
        return tf.concat([position[:, None], tf.reshape(conditions, [-1, width])], axis=1)

    def _event_shape(self):
        return tf.TensorShape(self.model.grid_shape)

    def _event_shape_tensor(self):
        return tf.constant(self.model.grid_shape, tf.int32)

    def _sample_n(self, n, seed=None):
        shape = tf.concat([[n], self.batch_shape_tensor()], axis=0)
        position, count = self._inputs(shape), tf.reduce_prod(shape)
        uniform = tf.random.stateless_uniform(
            [count, *self.model.grid_shape], tfp.random.sanitize_seed(seed)
        )
        all_masked = tf.fill([BATCH_SIZE, *self.model.grid_shape], MASKED)

        def sample(position, uniform):
            return self._sampler.sample_grids(position, uniform, all_masked)[0]

        codes = _map_batches(sample, BATCH_SIZE, tf.int32, position, uniform)
        return tf.reshape(codes, tf.concat([shape, self.event_shape_tensor()], axis=0))

    def _log_prob(self, codes):
        shape = tf.broadcast_dynamic_shape(tf.shape(codes)[:-2], self.batch_shape_tensor())
        grids = tf.broadcast_to(codes, tf.concat([shape, self.event_shape_tensor()], axis=0))
        grids = tf.reshape(tf.cast(grids, tf.int32), [-1, *self.model.grid_shape])
        size = tf.clip_by_value(tf.shape(grids)[0], 1, BATCH_SIZE)
        log_prob = _map_batches(self._grid_log_prob, size, tf.float32, grids, self._inputs(shape))
        return tf.reshape(log_prob, shape)

    def _grid_log_prob(self, grids, position):
        """Log-probabilities of grids (batch, r, c), each at its position: (batch,)."""
        codes = grids
        is_guided = self._sampler.guidance != 1
        if is_guided:
            position, codes = append_unconditional(position), tf.concat([grids, grids], axis=0)
        logits = self.model({"codes": codes, "position": position})
        if is_guided:
            logits = apply_guidance(logits, self._sampler.guidance)
        logits = tf.reshape(logits, [-1, self.model.num_embeddings])
        logits = filter_logits(logits, **self._sampler.limits)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(grids, [-1]), logits)
        return -tf.reduce_sum(tf.reshape(nats, [-1, self.model.scan_order.size]), axis=1)

    def _sample_control_dependencies(self, value):
        if not self.validate_args:
            return []
        codes = tf.cast(value, tf.int32)
        largest = self.model.num_embeddings - 1
        return [
            tf.debugging.assert_non_negative(codes, message="Codes must be at least 0."),
            tf.debugging.assert_less_equal(
                codes, largest, message=f"Codes must be at most {largest}."
            ),
        ]

    def _parameter_control_dependencies(self, is_init):
        if not self.validate_args or not is_init:
            return []
        message = "Positions must be in [0, 1]."
        return [
            tf.debugging.assert_non_negative(self.position, message=message),
            tf.debugging.assert_less_equal(self.position, 1.0, message=message),
        ]


def _map_batches(function, size, dtype, *values):
    """Apply a function to batches of `size`, one in memory at a time; the last one is padded."""
    count = tf.shape(values[0])[0]
    batches = -(-count // size)

    def batched(value):
        padding = [[0, batches * size - count]] + [[0, 0]] * (value.shape.rank - 1)
        return tf.reshape(tf.pad(value, padding), [batches, size, *value.shape[1:]])

    results = tf.map_fn(
        lambda batch: function(*batch), tuple(map(batched, values)), fn_output_signature=dtype
    )
    return tf.reshape(results, tf.concat([[batches * size], tf.shape(results)[2:]], 0))[:count]
