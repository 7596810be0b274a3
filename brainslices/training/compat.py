"""What the training needs from Keras beyond its public API (written for Keras 3.15).

Each hook has a test in `tests/brainslices/training/test_compat.py` that fails if Keras changes it.
"""

import math
from collections.abc import Sequence

import keras
from keras import ops

from brainslices.distributed.collectives import all_reduce_sum, replica_count
from brainslices.keras_setup import runs_on_cpu
from brainslices.types import Tensor

__all__ = ["Adam", "LossScaleOptimizer", "Muon", "averaged_variables", "sync_variables"]


class _Optimizer(keras.optimizers.Optimizer):
    """Base of optimizers for trainings of several `fit` calls on several devices."""

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


class Adam(_Optimizer, keras.optimizers.Adam):
    """Adam for the trainings of both stages."""


class Muon(_Optimizer, keras.optimizers.Muon):
    """Muon for every kernel but that of the logits, and Adam for all other variables.

    Keras applies Muon to 2-D variables only. Here the kernel of a convolution is the matrix from
    its window to its filters, (rows * cols * in, out), and that of a transposed convolution the
    matrix (rows * cols * out, in). Rows of zeros, the gradient of masked weights, stay zero.

    Reference:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale of the update: Liu et
        al. 2025, arXiv 2502.16982, equation 4.
    """

    def _should_use_adamw(self, variable):
        return variable.name != "kernel" or "logits" in variable.path

    def zeropower_via_newtonschulz5(self, x: Tensor, steps: int) -> Tensor:
        """Orthogonalise a kernel of any shape approximately."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        if runs_on_cpu():
            matrix = self._orthogonalize_by_gram_matrix(matrix, steps)
        else:  # a GPU rounds products to TensorFloat-32, which powers of a Gram matrix amplify
            matrix = super().zeropower_via_newtonschulz5(matrix, steps)
        return ops.reshape(matrix, x.shape)

    def _orthogonalize_by_gram_matrix(self, matrix, steps):
        """As Keras, with two products of the size of the kernel instead of two in each step.

        Each Newton-Schulz step is X <- p X with p = a I + b G + c G^2 and G = X X^T. All p are
        polynomials of the first G, so that they commute, and G <- p G p.
        """
        is_tall = matrix.shape[0] > matrix.shape[1]
        matrix = ops.transpose(matrix) if is_tall else matrix
        matrix /= ops.norm(matrix) + 1e-7
        identity = product = ops.eye(matrix.shape[0])
        gram = ops.matmul(matrix, ops.transpose(matrix))
        for _ in range(steps):
            polynomial = self.muon_a * identity + self.muon_b * gram
            polynomial += self.muon_c * ops.matmul(gram, gram)
            product = ops.matmul(polynomial, product)
            gram = ops.matmul(polynomial, ops.matmul(gram, polynomial))
        matrix = ops.matmul(product, matrix)
        return ops.transpose(matrix) if is_tall else matrix

    def lr_adjust(self, x: Tensor) -> Tensor:
        """Scale the update of a kernel to the size of an update of Adam."""
        sides = math.prod(x.shape[:-1]), x.shape[-1]
        return x * (self.rms_rate * math.sqrt(max(sides)))


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
