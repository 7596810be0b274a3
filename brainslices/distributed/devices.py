"""Devices that share a training, on one host and on several."""

import contextlib
import functools
from collections.abc import Iterator

import keras

__all__ = ["count_devices", "data_parallel", "list_gpus", "single_device"]


def list_gpus() -> list[str]:
    """List the names of the GPUs that the backend sees, on all hosts."""
    with contextlib.suppress(RuntimeError):  # JAX without a GPU
        return keras.distribution.list_devices("gpu")
    return []


def _training_devices() -> list[str]:
    """List all GPUs, or all CPUs without a GPU (one, unless virtual ones are configured)."""
    return list_gpus() or keras.distribution.list_devices("cpu")


def count_devices() -> int:
    """Count the devices that share each training batch, on all hosts."""
    return len(_training_devices())


@contextlib.contextmanager
def data_parallel() -> Iterator[None]:
    """Split the batches of models that are built and trained in the block among all devices."""
    devices = _training_devices()
    if len(devices) == 1:
        yield
    elif keras.backend.backend() == "jax":
        # Each process loads its own share of a batch: see `Batches`.
        distribution = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        with distribution.scope():
            yield
    else:
        with _mirrored_strategy(tuple(devices)).scope():
            yield


@functools.cache
def _mirrored_strategy(devices):
    # One for all trainings of a process: it numbers its collective operations, and a second
    # strategy would use the same numbers again.
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([name.upper() for name in devices])


@contextlib.contextmanager
def single_device() -> Iterator[None]:
    """Build and use models on this process's first device, even inside `data_parallel` under JAX.

    TensorFlow's replicas are left as they are: a model built in the block has variables on each.
    """
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
