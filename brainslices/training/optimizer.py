"""The optimiser of both stages: Adam, its schedule, and the average of the weights it keeps."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from brainslices.config import TrainingConfig
from brainslices.distributed.collectives import all_reduce_sum, replica_count

__all__ = ["assign", "ema_swap", "compile_model", "learning_rate"]


def learning_rate(config: TrainingConfig, steps: int):
    """The learning rate of a training.

    Args:
        config: the training's configuration.
        steps: steps of the whole training.

    Returns:
        A float, or a Keras schedule: linear warm-up, then half a cosine to 0.
    """
    if config.schedule == "constant":
        return config.learning_rate
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(1, steps - config.warmup_steps),
    )


def compile_model(model: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> None:
    """Give a built model its Adam optimiser, with all of the optimiser's state made.

    Args:
        model: built, with its dtype policy.
        config: the training's configuration.
        steps_per_epoch: steps that the learning rate's schedule counts in an epoch.
    """
    optimizer = _Adam(
        learning_rate(config, config.epochs * steps_per_epoch),
        name="adam",
        beta_2=config.beta_2,
        global_clipnorm=config.gradient_clip or None,
        use_ema=config.average > 0,
        ema_momentum=config.average,
    )
    if model.dtype_policy.name == "mixed_float16":
        optimizer = _LossScale(optimizer, name="loss_scale")
    model.compile(optimizer=optimizer, auto_scale_loss=False)
    model.optimizer.build(model.trainable_variables)


class _Adam(keras.optimizers.Adam):
    """Adam whose average of the weights starts soon, and leaves them alone when a `fit` ends.

    A training is made of several: the rest of an epoch that was cut, and the other epochs.
    """

    def finalize_variable_values(self, var_list):
        pass

    def _clip_gradients(self, grads):
        # The norm is that of the whole batch's gradient; Keras adds the parts up only later.
        parts = replica_count()
        if parts == 1 or not self.global_clipnorm:
            return super()._clip_gradients(grads)
        return [grad / parts for grad in super()._clip_gradients(all_reduce_sum(grads))]

    @property
    def ema_momentum(self):
        """Lower at first, so that an average of few steps is not mostly the first weights."""
        steps = ops.cast(self.iterations, "float32")
        return ops.minimum(self._average, (1.0 + steps) / (10.0 + steps))

    @ema_momentum.setter
    def ema_momentum(self, average):
        self._average = average


class _LossScale(keras.optimizers.LossScaleOptimizer):
    """Loss scaling that leaves out a step where any part of the batch overflows.

    Keras asks the first replica alone, and would add the other's infinities to the weights.
    """

    def check_finite(self, grads):
        overflown = 1.0 - ops.cast(super().check_finite(grads), "float32")
        return ops.equal(all_reduce_sum(overflown), 0.0)


@contextlib.contextmanager
def ema_swap(model: keras.Model) -> Iterator[None]:
    """Lend the model the average of its weights, where its optimiser keeps one.

    Args:
        model: compiled; it has its own weights back when the block ends.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    # Copies: under JAX an array that two variables shared would be given away with one of them.
    own = [np.array(variable) for variable in model.trainable_variables]
    averages = optimizer._model_variables_moving_average
    assign(model.trainable_variables, [np.array(average) for average in averages])
    try:
        yield
    finally:
        assign(model.trainable_variables, own)


def assign(variables, values) -> None:
    """Give each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
