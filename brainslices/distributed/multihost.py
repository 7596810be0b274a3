"""Start-up of several processes that train together, and their end when one of them is lost."""

import contextlib
import dataclasses
import math
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping

import keras

from brainslices import cli
from brainslices.distributed.ports import check_can_listen, wait_for_server
from brainslices.errors import InputError

__all__ = ["ProcessGroup", "distributed_session"]

# `keras.distribution.initialize` reads variables of the same names.
ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
INDEX = "KERAS_DISTRIBUTION_PROCESS_ID"
TIMEOUT = "BRAINSLICES_JOIN_TIMEOUT"
TIMEOUT_S = 120.0
# JAX aborts with a stack trace at its own start-up timeout, so ours has to come first.
JAX_MARGIN_S = 30
HEARTBEAT_TIMEOUT_S = 60
MAX_PORT = 65535
LOST_PEER = (
    "Another of the processes that train together has ended or cannot be reached. The last "
    "checkpoint is kept: start all of them again by the same commands."
)
# Words in the errors that JAX and its libraries raise when another process does not answer.
PEER_WORDS = ("gloo", "nccl", "coordination", "connection", "unavailable", "deadline", "preempted")
MAX_REASON_LENGTH = 300


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and which of them this one is."""

    host: str
    """Host name or IP address of process 0, the coordinator."""
    port: int
    """Free port on that host."""
    count: int
    index: int
    timeout: float = TIMEOUT_S
    """Seconds to wait for the other processes at start-up."""

    @property
    def address(self) -> str:
        """Coordinator address, host:port."""
        return f"{self.host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ProcessGroup | None":
        """Read the process group from environment variables.

        Returns:
            The group, or None if no variable is set.

        Raises:
            InputError: if a variable is missing or invalid.
        """
        values = {name: environment.get(name, "") for name in (ADDRESSES, COUNT, INDEX)}
        if not any(values.values()):
            return None
        missing = [name for name, value in values.items() if not value]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} must be set too. Each process needs {ADDRESSES} "
                f"(host:port of process 0), {COUNT} (number of processes) and {INDEX} (number of "
                "this process, from 0)."
            )
        values[TIMEOUT] = environment.get(TIMEOUT, str(TIMEOUT_S))

        def check(is_valid, name, expectation):
            if not is_valid:
                raise InputError(f"`{name}` must be {expectation}. Received: {values[name]!r}.")

        host, _, port = values[ADDRESSES].split(",")[0].rpartition(":")
        is_address = host and port.isdecimal() and 0 < int(port) <= MAX_PORT
        check(is_address, ADDRESSES, f"host:port of process 0, with a port from 1 to {MAX_PORT}")
        check(values[COUNT].isdecimal() and int(values[COUNT]), COUNT, "a positive integer")
        count = int(values[COUNT])
        is_index = values[INDEX].isdecimal() and int(values[INDEX]) < count
        check(is_index, INDEX, f"an integer from 0 to {count - 1}, less than {COUNT}")
        seconds = math.nan
        with contextlib.suppress(ValueError):
            seconds = float(values[TIMEOUT])
        check(0 < seconds < math.inf, TIMEOUT, "a positive number of seconds")
        return cls(host, int(port), count, int(values[INDEX]), seconds)


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Join the process group that the environment describes, if any; before any computation.

    Standard output of all processes but process 0 is discarded, as it would repeat the same lines.

    A process whose peers do not all connect in time exits with status 2 and a message. After an
    exception in the block the process exits at once, since the others may be waiting for it. They
    end with status 2 and a message as soon as they wait for it in a collective operation. The one
    exception was seen with JAX 0.10: where process 0, the coordinator, ends while another process
    computes outside of a collective operation, JAX aborts that one within a second (SIGABRT),
    with a stack trace. A host that vanishes without closing its connections is noticed after
    `HEARTBEAT_TIMEOUT_S`.

    Raises:
        InputError: if the environment is invalid, the backend is not JAX, the coordinator's port
            is taken, or the coordinator cannot be reached in time.
    """
    group = ProcessGroup.from_environment()
    if group is None or group.count == 1:
        yield
        return
    _join(group)
    try:
        yield
    except Exception as error:
        # A normal exit would wait for the others, and abort with a stack trace if one is lost.
        _exit(_print_failure(error))


def _print_failure(error: Exception) -> int:
    if isinstance(error, InputError | OSError):
        return cli.print_error(error)
    if not any(word in str(error).lower() for word in PEER_WORDS):
        traceback.print_exception(error)
        return 1
    reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
    return cli.print_error(InputError(f"{LOST_PEER} (JAX reports: {reason})"))


def _exit(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join(group):
    if keras.backend.backend() != "jax":
        raise InputError(
            f"{COUNT} is {group.count}, but several processes train together only under JAX. "
            "Set KERAS_BACKEND=jax, or unset the variable."
        )
    _wait_for_coordinator(group) if group.index else _check_port_is_free(group)
    import jax

    # JAX would handle SIGTERM itself, and hide it from a process that is not in a training step.
    jax.config.update("jax_enable_preemption_service", False)
    watchdog = threading.Timer(group.timeout, _exit_unjoined, [group])
    watchdog.start()
    try:
        jax.distributed.initialize(
            group.address,
            group.count,
            group.index,
            # Under Slurm it would give each process one GPU, by the task's number on its node.
            cluster_detection_method="deactivate",
            initialization_timeout=int(group.timeout) + JAX_MARGIN_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    finally:
        watchdog.cancel()
    if group.index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)


def _exit_unjoined(group):
    message = (
        f"Not all of the {group.count} processes connected to {group.address} within "
        f"{group.timeout:g} s. Start each once, with the same {COUNT} and its own {INDEX} from 0 "
        f"to {group.count - 1}, or wait longer with {TIMEOUT}."
    )
    _exit(cli.print_error(InputError(message)))


def _check_port_is_free(group):
    try:
        check_can_listen("", group.port)
    except OSError as error:
        raise InputError(
            f"Port {group.port} of this machine, from {ADDRESSES}, cannot be used "
            f"({error.strerror}). Choose a free port, and start only one process with {INDEX}=0."
        ) from error


def _wait_for_coordinator(group):
    try:
        wait_for_server(group.host, group.port, group.timeout)
    except OSError as error:
        raise InputError(
            f"Process 0 cannot be reached at {group.address} within {group.timeout:g} s "
            f"({error.strerror or error}). Start it with {INDEX}=0, check that this machine "
            f"reaches that address, or wait longer with {TIMEOUT}."
        ) from error
