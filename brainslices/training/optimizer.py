"""The optimizer of both stages, its learning-rate schedule and its averaged weights."""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from brainslices.config import TrainingConfig
from brainslices.training.compat import Adam, LossScaleOptimizer, Muon, averaged_variables

__all__ = ["assign", "compile_model", "ema_swap", "learning_rate"]


def learning_rate(
    config: TrainingConfig, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate of a training.

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
    """Compile a built model with its optimizer and create all of the optimizer's variables.

    Args:
        model: the model; its dtype policy decides on loss scaling.
        config: the training's configuration.
        steps_per_epoch: length of an epoch for the learning-rate schedule.
    """
    shared = {
        "learning_rate": learning_rate(config, config.epochs * steps_per_epoch),
        "name": config.optimizer,
        "global_clipnorm": config.gradient_clip or None,
        "use_ema": config.average > 0,
        "ema_momentum": config.average,
    }
    if config.optimizer == "muon":
        decay = {"weight_decay": None, "adam_weight_decay": None}
        optimizer = Muon(adam_beta_2=config.beta_2, **decay, **shared)
    else:
        optimizer = Adam(beta_2=config.beta_2, **shared)
    if model.dtype_policy.name == "mixed_float16":
        optimizer = LossScaleOptimizer(optimizer, name="loss_scale")
    model.compile(optimizer=optimizer, auto_scale_loss=False)
    model.optimizer.build(model.trainable_variables)


@contextlib.contextmanager
def ema_swap(model: keras.Model) -> Iterator[None]:
    """Replace a compiled model's weights by their average, if there is one, within the block."""
    averages = averaged_variables(model)
    if averages is None:
        yield
        return
    # Copies: JAX donates arrays to a step, so two variables must not share one.
    weights = [np.array(variable) for variable in model.trainable_variables]
    assign(model.trainable_variables, [np.array(average) for average in averages])
    try:
        yield
    finally:
        assign(model.trainable_variables, weights)


def assign(variables: Iterable[keras.Variable], values: Iterable[np.ndarray]) -> None:
    """Assign each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
