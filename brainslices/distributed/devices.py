"""Devices that share a training, on one host and on several."""

import contextlib
import functools
from collections.abc import Iterator

import keras

__all__ = ["single_device", "data_parallel", "device_count", "gpus"]


def gpus() -> list[str]:
    """Names of the GPUs that the backend sees, on all machines."""
    with contextlib.suppress(RuntimeError):  # JAX without one
        return keras.distribution.list_devices("gpu")
    return []


def _devices():
    """Names of the devices that training uses: all GPUs, or else all CPUs (mostly one)."""
    return gpus() or keras.distribution.list_devices("cpu")


def device_count() -> int:
    """Devices that share each batch in a training, on all machines."""
    return len(_devices())


@contextlib.contextmanager
def data_parallel() -> Iterator[None]:
    """Share the batches of models that are made and trained within among all devices."""
    devices = _devices()
    if len(devices) == 1:
        yield
    elif keras.backend.backend() == "jax":
        # Each process loads its own share: see `Batches`.
        shared = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        with shared.scope():
            yield
    else:
        with _mirrored(tuple(devices)).scope():
            yield


@functools.cache
def _mirrored(devices):
    # One for all trainings of a process: its sums are numbered, and a second would number anew.
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([name.upper() for name in devices])


@contextlib.contextmanager
def single_device() -> Iterator[None]:
    """Make and use models on this process's first device, whatever JAX shares around it.

    TensorFlow's replicas are left as they are: a model made within has variables on each.
    """
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(shared)
