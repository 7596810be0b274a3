"""What the training needs from Keras beyond its public API (written for Keras 3.15).

Each hook has a test in `tests/brainslices/training/test_compat.py` that fails if Keras changes it.
"""

from collections.abc import Sequence

import keras
from keras import ops

from brainslices.distributed.collectives import all_reduce_sum, replica_count
from brainslices.types import Tensor

__all__ = ["Adam", "LossScaleOptimizer", "averaged_variables", "sync_variables"]


class Adam(keras.optimizers.Adam):
    """Adam for a training that consists of several `fit` calls and runs on several devices."""

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Leave the weights as they are; Keras replaces them by their average after each `fit`."""

    def _clip_gradients(self, grads):
        # Clip by the norm of the whole batch's gradient; Keras clips each replica's part alone.
        replicas = replica_count()
        if replicas == 1 or not self.global_clipnorm:
            return super()._clip_gradients(grads)
        return [grad / replicas for grad in super()._clip_gradients(all_reduce_sum(grads))]

    @property
    def ema_momentum(self) -> Tensor:
        """Decay of the averaged weights; lower at first, to forget the initial weights."""
        steps = ops.cast(self.iterations, "float32")
        return ops.minimum(self._ema_momentum, (1.0 + steps) / (10.0 + steps))

    @ema_momentum.setter
    def ema_momentum(self, value: float) -> None:
        self._ema_momentum = value


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Loss scaling that skips a step if the gradient overflows on any replica.

    Keras checks the first replica only and would add the infinities of the others to the weights.
    """

    def check_finite(self, grads: Sequence[Tensor]) -> Tensor:
        """Return whether the gradients are finite on all replicas, as a bool tensor."""
        overflow = 1.0 - ops.cast(super().check_finite(grads), "float32")
        return ops.equal(all_reduce_sum(overflow), 0.0)


def averaged_variables(model: keras.Model) -> list[keras.Variable] | None:
    """Return the moving average of each trainable variable, or None if there is none."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return optimizer._model_variables_moving_average if optimizer.use_ema else None


def sync_variables(model: keras.Model) -> None:
    """Copy the current state into the variables: JAX holds it outside of them during `fit`."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
