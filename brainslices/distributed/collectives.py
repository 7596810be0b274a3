"""Collective operations: across the replicas of a training step, and across processes."""

import hashlib
import json
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np

from brainslices import keras_setup  # noqa: F401  before any layer is built
from brainslices.errors import InputError
from brainslices.types import Tensor

__all__ = [
    "all_gather",
    "all_reduce_sum",
    "any_process",
    "check_same_on_all_processes",
    "is_primary",
    "process_index_and_count",
    "replica_count",
    "run_on_all",
    "run_on_primary",
]

Result = TypeVar("Result")


# Within a training step: TensorFlow runs it once per device, on that device's share of the batch.
# JAX runs it once, on arrays of the whole batch whose parts lie on the devices.


def _replica_context() -> Any:
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return None
    return tf.distribute.get_replica_context()


def replica_count() -> int:
    """Count the parts of a batch that compute losses of their own in a training step."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor of any shape, or a list of tensors, over the replicas."""
    context = _replica_context()
    return values if context is None else context.all_reduce("SUM", values)


def all_gather(values: Tensor) -> Tensor:
    """Concatenate tensors of shape (replica batch, ...) over the replicas to (batch, ...)."""
    context = _replica_context()
    return values if context is None else context.all_gather(values, axis=0)


# Between processes: all run the same program, but only process 0 writes files.


def process_index_and_count() -> tuple[int, int]:
    """Return this process's number, from 0, and the number of processes."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is process 0, the one that writes files."""
    return process_index_and_count()[0] == 0


def run_on_primary(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function on process 0 and broadcast its result, or its exception.

    Args:
        function: returns a picklable result.
        *arguments: arguments of the function.

    Raises:
        InputError, OSError, KeyboardInterrupt: as the function, in every process.
        RuntimeError: in the other processes, if the function raises anything else.
    """
    if process_index_and_count()[1] == 1:
        return function(*arguments)
    result = error = None
    if is_primary():
        try:
            result = function(*arguments)
        except (InputError, OSError, KeyboardInterrupt) as expected:
            error = expected
        except Exception as unexpected:
            _broadcast((None, RuntimeError(f"{type(unexpected).__name__} in process 0")))
            raise
    result, error = _broadcast((result, error))
    if error is not None:
        raise error
    return result


def _broadcast(value: Any) -> Any:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    length = int(broadcast_one_to_all(np.array(len(data))))
    return pickle.loads(np.asarray(broadcast_one_to_all(np.resize(data, length))).tobytes())


def run_on_all(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in every process; it fails in all of them if it fails in one.

    Args:
        function: what it raises as `InputError` or `OSError` is raised in that process.
        *arguments: arguments of the function.

    Raises:
        InputError: in the other processes.
    """
    result = failure = None
    try:
        result = function(*arguments)
    except (InputError, OSError) as error:
        failure = error
    if any_process(failure is not None):
        raise failure or InputError("Another process cannot start; it prints the reason.")
    return result  # type: ignore[return-value]


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process; every process must call this at the same step."""
    if process_index_and_count()[1] == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))


def check_same_on_all_processes(value: object, what: str) -> None:
    """Check that every process was started with the same values.

    Args:
        value: anything that JSON can represent.
        what: what the value is, for the message.

    Raises:
        InputError: in every process, if the values differ.
    """
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    if any_process(digest != run_on_primary(lambda: digest)):
        raise InputError(
            f"The processes were started with different {what}. Start each with the same command."
        )
