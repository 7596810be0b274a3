"""Training on all devices of a machine, and on those of several machines.

Each batch is shared out: with TensorFlow among the devices of one machine (`MirroredStrategy`),
with JAX among those of all processes (`keras.distribution`). Losses, gradients and the codebook's
averages are those of the whole batch, as on one device.
"""

import contextlib
import functools
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from typing import TypeVar

import keras
import numpy as np

from brainslices.errors import InputError

__all__ = [
    "alone",
    "anywhere",
    "data_parallel",
    "device_count",
    "gathered",
    "gpus",
    "is_first",
    "on_each",
    "on_first",
    "process_share",
    "replica_count",
    "require_same_everywhere",
    "total",
]

Answer = TypeVar("Answer")


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
def alone() -> Iterator[None]:
    """Make and use models on this process's first device, whatever JAX shares around it.

    TensorFlow's replicas are left as they are: a model made within has variables on each.
    """
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(shared)


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


def total(values):
    """Sum over the parts of the batch.

    Args:
        values: tensor of any shape, or a list of them: this part's.

    Returns:
        The same shapes: the whole batch's, equal on all replicas.
    """
    replicas = _replicas()
    return values if replicas is None else replicas.all_reduce("SUM", values)


def gathered(values):
    """The parts of the batch, joined.

    Args:
        values: tensor of shape (part, ...), this part's.

    Returns:
        Tensor of shape (batch, ...), equal on all replicas.
    """
    replicas = _replicas()
    return values if replicas is None else replicas.all_gather(values, axis=0)


# Between processes: they run the same program, but only the first writes.


def process_share() -> tuple[int, int]:
    """Which of how many processes this one is."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return process_share()[0] == 0


def on_first(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Call a function on the first process; every process gets its answer, or its error.

    Args:
        function: the answer must be picklable.
        *arguments: of the function.
    """
    if process_share()[1] == 1:
        return function(*arguments)
    outcome = None
    if is_first():
        try:
            outcome = ("answer", function(*arguments))
        except (InputError, OSError, KeyboardInterrupt) as error:
            outcome = ("error", error)
        except Exception as error:
            _told_by_first(("error", RuntimeError(f"{type(error).__name__} in the first process")))
            raise
    kind, value = _told_by_first(outcome)
    if kind == "error":
        raise value
    return value


def _told_by_first(value):
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(pickle.dumps(value), np.uint8)
    length = int(broadcast_one_to_all(np.array(len(text))))
    return pickle.loads(np.asarray(broadcast_one_to_all(np.resize(text, length))).tobytes())


def on_each(function: Callable[..., Answer], *arguments: object) -> Answer:
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
    if anywhere(failure is not None):
        raise failure or InputError("Another of the processes cannot begin: it tells why.")
    return answer


def anywhere(flag: bool) -> bool:
    """Whether a flag is set in any process; every process must ask at the same step."""
    if process_share()[1] == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))


def require_same_everywhere(asked: object, what: str) -> None:
    """Check that every process was given the same.

    Args:
        asked: what JSON can hold.
        what: what it is, for the message.

    Raises:
        InputError: if they differ, in every process.
    """
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    if anywhere(digest != on_first(lambda: digest)):
        raise InputError(
            f"The processes were given different {what}. Start each with the same command."
        )
