"""Collective operations: across replicas within a step, and across processes."""

import hashlib
import json
import pickle
from collections.abc import Callable
from typing import TypeVar

import keras
import numpy as np

from brainslices.errors import InputError

__all__ = [
    "any_process",
    "all_gather",
    "is_primary",
    "run_on_all",
    "run_on_primary",
    "process_index_and_count",
    "replica_count",
    "check_same_on_all_processes",
    "all_reduce_sum",
]

Answer = TypeVar("Answer")


# Within a training step: TensorFlow runs it on each device's share of the batch. JAX's arrays are
# those of the whole batch, wherever their parts lie.


def _replicas():
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return None
    return tf.distribute.get_replica_context()


def replica_count() -> int:
    """How many parts of a batch a training step is run on, each with losses of its own."""
    replicas = _replicas()
    return 1 if replicas is None else replicas.num_replicas_in_sync


def all_reduce_sum(values):
    """Sum over the parts of the batch.

    Args:
        values: tensor of any shape, or a list of them: this part's.

    Returns:
        The same shapes: the whole batch's, equal on all replicas.
    """
    replicas = _replicas()
    return values if replicas is None else replicas.all_reduce("SUM", values)


def all_gather(values):
    """The parts of the batch, joined.

    Args:
        values: tensor of shape (part, ...), this part's.

    Returns:
        Tensor of shape (batch, ...), equal on all replicas.
    """
    replicas = _replicas()
    return values if replicas is None else replicas.all_gather(values, axis=0)


# Between processes: they run the same program, but only the first writes.


def process_index_and_count() -> tuple[int, int]:
    """Which of how many processes this one is."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is the process that writes."""
    return process_index_and_count()[0] == 0


def run_on_primary(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Call a function on the first process; every process gets its answer, or its error.

    Args:
        function: the answer must be picklable.
        *arguments: of the function.
    """
    if process_index_and_count()[1] == 1:
        return function(*arguments)
    outcome = None
    if is_primary():
        try:
            outcome = ("answer", function(*arguments))
        except (InputError, OSError, KeyboardInterrupt) as error:
            outcome = ("error", error)
        except Exception as error:
            _broadcast(("error", RuntimeError(f"{type(error).__name__} in the first process")))
            raise
    kind, value = _broadcast(outcome)
    if kind == "error":
        raise value
    return value


def _broadcast(value):
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(pickle.dumps(value), np.uint8)
    length = int(broadcast_one_to_all(np.array(len(text))))
    return pickle.loads(np.asarray(broadcast_one_to_all(np.resize(text, length))).tobytes())


def run_on_all(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Call a function in every process; none goes on if it failed in one.

    Args:
        function: what it raises as `InputError` or `OSError` is raised in that process.
        *arguments: of the function.

    Raises:
        InputError: in the others.
    """
    answer = failure = None
    try:
        answer = function(*arguments)
    except (InputError, OSError) as error:
        failure = error
    if any_process(failure is not None):
        raise failure or InputError("Another of the processes cannot begin: it tells why.")
    return answer


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process; every process must ask at the same step."""
    if process_index_and_count()[1] == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))


def check_same_on_all_processes(asked: object, what: str) -> None:
    """Check that every process was given the same.

    Args:
        asked: what JSON can hold.
        what: what it is, for the message.

    Raises:
        InputError: if they differ, in every process.
    """
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    if any_process(digest != run_on_primary(lambda: digest)):
        raise InputError(
            f"The processes were given different {what}. Start each with the same command."
        )
