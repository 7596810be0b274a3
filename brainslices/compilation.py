"""Compilation of functions that call a model, on either backend."""

from collections.abc import Callable

import keras

__all__ = ["compiled"]


def compiled(function: Callable, model: keras.Model) -> Callable:
    """Compile a function of tensors that calls a model; later weight updates take effect.

    Args:
        function: a function of tensors that calls `model`.
        model: the built model.

    Returns:
        A function of arrays or tensors.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import jax

    @jax.jit
    def stateless(weights, *arguments):
        with keras.StatelessScope(zip(model.variables, weights, strict=True)):
            return function(*arguments)

    return lambda *arguments: stateless([item.value for item in model.variables], *arguments)
