"""Several processes that train together: who they are, and whether all have come."""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

import keras

from brainslices import cli
from brainslices.errors import InputError

__all__ = ["ProcessGroup", "distributed_session"]

# The names are Keras's: `keras.distribution.initialize` reads them too.
ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
INDEX = "KERAS_DISTRIBUTION_PROCESS_ID"
TIMEOUT = "BRAINSLICES_JOIN_TIMEOUT"
TIMEOUT_S = 120.0
# A process that has died is missed after this long, and the others end.
HEARTBEAT_S = 60
KNOCK_S, RETRY_S = 5.0, 0.2
# The first process, where it cannot go on, waits so long for the others to end; they wait a little
# to end by themselves, for what they may have to say.
PART_S, OWN_WORDS_S = 20.0, 2.0
DISMISSAL = b"dismissed\n"
LOST_PEER = (
    "Another of the processes that train together has ended, or cannot be reached any more. The "
    "last saved state is kept: start all of them again by the same commands."
)
REASON_LENGTH = 300
LAST_PORT = 65535
# What libraries say where another process no longer answers.
LOST = ("gloo", "nccl", "coordination", "connection", "unavailable", "deadline", "preempted")


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as this one is told of them.

    Args:
        host: name or number of the first process's machine.
        port: a free port there.
        count: number of processes.
        index: which of them this one is, from 0.
        timeout: seconds to wait for the others.
    """

    host: str
    port: int
    count: int
    index: int
    timeout: float = TIMEOUT_S

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ProcessGroup | None":
        """The cluster that environment variables tell of; None where they tell of none.

        Raises:
            InputError: if one of them is missing or makes no sense.
        """
        given = {name: environment.get(name, "") for name in (ADDRESSES, COUNT, INDEX)}
        if not any(given.values()):
            return None
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} must be set too. Of processes that train together each "
                f"needs {ADDRESSES} (host:port of the first), {COUNT} (how many there are) and "
                f"{INDEX} (which one it is, from 0)."
            )
        host, _, port = given[ADDRESSES].split(",")[0].rpartition(":")
        numbers = {ADDRESSES: port, COUNT: given[COUNT], INDEX: given[INDEX]}
        wrong = [name for name, value in numbers.items() if not value.isdecimal()]
        if not (wrong or host and 0 < int(port) <= LAST_PORT) or wrong == [ADDRESSES]:
            raise InputError(
                f"{ADDRESSES} must be host:port of the first process, with a port from 1 to "
                f"{LAST_PORT}. Received: {given[ADDRESSES]!r}."
            )
        if wrong:
            raise InputError(
                f"{wrong[0]} must be a whole number, not negative. Received: {given[wrong[0]]!r}."
            )
        count, index = int(given[COUNT]), int(given[INDEX])
        if not count:
            raise InputError(f"{COUNT} must be at least 1. Received: 0.")
        if not index < count:
            raise InputError(
                f"{INDEX} must be under {COUNT}, which is {count}: the processes count from 0. "
                f"Received: {index}."
            )
        return cls(host, int(port), count, index, _timeout(environment))


def _timeout(environment):
    text = environment.get(TIMEOUT, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{TIMEOUT} must be a number of seconds above 0. Received: {text!r}.")
    return seconds


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Be one of the processes that the environment tells of, if it does; before any arithmetic.

    What processes other than the first print is dropped: they all would say the same. Where
    another one is lost within the block this one ends at once, with status 2 and a message. It ends
    at once after any error within the block, since the others may wait for an answer.

    Raises:
        InputError: if the environment makes no sense, the backend is not JAX, or not every process
            has come in time.
    """
    cluster = ProcessGroup.from_environment()
    if cluster is None or cluster.count == 1:
        yield
        return
    ends = _join(cluster)
    try:
        yield
    except Exception as error:
        status = _tell(error)
        if cluster.index == 0:
            _dismiss(ends)
        # At once: JAX would wait for the others, and where one is lost abort with its own stack.
        _end(status)


def _dismiss(ends):
    """Have the others end before the first process: JAX aborts those that miss it."""
    until = time.monotonic() + PART_S
    for end in ends:
        with contextlib.suppress(OSError):  # it has gone already
            end.sendall(DISMISSAL)
    for end in ends:
        with contextlib.suppress(OSError):
            end.settimeout(max(until - time.monotonic(), 0.01))
            end.recv(1)  # returns as it goes


def _heed(end):
    """Wait for the first process's dismissal, beside all else; where it ends without, no longer."""
    with contextlib.suppress(OSError):
        end.settimeout(None)
        if _line(end) == DISMISSAL:
            time.sleep(OWN_WORDS_S)
            _end(cli.print_error(InputError(f"{LOST_PEER} (The first process tells why.)")))


def _tell(error):
    """Write what happened to stderr; returns the exit status for it."""
    if isinstance(error, InputError | OSError):
        return cli.print_error(error)
    if not any(word in str(error).lower() for word in LOST):
        traceback.print_exception(error)
        return 1
    reason = " ".join(str(error).split())[:REASON_LENGTH]
    return cli.print_error(InputError(f"{LOST_PEER} (JAX says: {reason})"))


def _end(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join(cluster):
    if keras.backend.backend() != "jax":
        raise InputError(
            f"{COUNT} is {cluster.count}: several processes train together under JAX alone. "
            "Set KERAS_BACKEND=jax, or unset the variable."
        )
    import jax

    ends = _call_roll(cluster)
    # JAX would take SIGTERM for itself, and keep it from whoever is not in a step.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.address,
        cluster.count,
        cluster.index,
        # Under Slurm it would give each process one GPU, by the task's number on its node.
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_S,
    )
    if cluster.index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
        threading.Thread(target=_heed, args=ends, daemon=True).start()
    return ends


def _call_roll(cluster):
    """Have everyone there, once each, before JAX: it would end the process without a word of why.

    The first process listens where JAX will; each other one tells its number and waits to hear
    how it went. Returns the ends of their connections, which stay open: the first process's to each
    other one, or that to the first.
    """
    complaint, ends = _report(cluster) if cluster.index else _hear_all(cluster)
    if complaint:
        for end in ends:
            end.close()
        raise InputError(complaint)
    return ends


def _hear_all(cluster):
    until = time.monotonic() + cluster.timeout
    present, ends, complaint = set(), [], ""
    try:
        server = socket.create_server(("", cluster.port))
    except OSError as error:
        return (
            f"Port {cluster.port} of this machine, which {ADDRESSES} names, cannot be used "
            f"({error.strerror}). Is another process with {INDEX}=0 there? Give each a number "
            "of its own, or choose a free port."
        ), ends
    with server:
        while len(present) < cluster.count - 1 and not complaint:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                end, _ = server.accept()
            except TimeoutError:
                complaint = _absence(cluster, present)
                continue
            index, count = _hear(end)
            if index is None:
                end.close()
                continue
            ends.append(end)
            complaint = _misfit(index, count, cluster, present)
            present.add(index)
    for end in ends:
        with contextlib.suppress(OSError):  # it has gone meanwhile
            end.sendall(json.dumps(complaint).encode() + b"\n")
    return complaint, ends


def _line(end):
    """The next line, and nothing of what follows it; less where the other end has gone."""
    line = b""
    while not line.endswith(b"\n") and (byte := end.recv(1)):
        line += byte
    return line


def _hear(end):
    """Number of the process at the other end, and how many it was told of; None for a stranger."""
    end.settimeout(KNOCK_S)
    try:
        told = json.loads(_line(end))
        return int(told["index"]), int(told["count"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _misfit(index, count, cluster, present):
    if count != cluster.count:
        return (
            f"Process {index} was told of {count} processes ({COUNT}), process 0 of "
            f"{cluster.count}. Tell them the same."
        )
    if index in present:
        return (
            f"Two processes came as {INDEX}={index}. Give each a number of its own, from 0 to "
            f"{cluster.count - 1}."
        )
    return ""


def _absence(cluster, present):
    absent = sorted(set(range(1, cluster.count)) - present)
    return (
        f"Process {', '.join(map(str, absent))} of {cluster.count} did not come to "
        f"{cluster.address} within {cluster.timeout:.0f} s. Start each with its {INDEX}, see that "
        f"it can reach that address, or wait longer with {TIMEOUT}."
    )


def _report(cluster):
    until = time.monotonic() + cluster.timeout
    told = json.dumps({"index": cluster.index, "count": cluster.count}).encode() + b"\n"
    reached, refusal = False, "no answer"
    while time.monotonic() < until:
        place = cluster.host, cluster.port
        try:
            with contextlib.ExitStack() as stack:
                end = stack.enter_context(socket.create_connection(place, timeout=KNOCK_S))
                reached = True
                # Process 0 waits as long, from when it came, and may be hearing a stranger out.
                end.settimeout(cluster.timeout + 2 * KNOCK_S)
                end.sendall(told)
                complaint = json.loads(_line(end))
                stack.pop_all()
                return complaint, [end]
        except (OSError, ValueError) as error:  # not there yet, or somebody else's port
            refusal = getattr(error, "strerror", None) or refusal
        time.sleep(RETRY_S)
    if reached:
        return (
            f"Process 0 at {cluster.address} calls no roll any more: the processes that it waited "
            f"for have come. Is {INDEX}={cluster.index} given twice, or the port another program's?"
        ), []
    return (
        f"Process 0 could not be reached at {cluster.address} within {cluster.timeout:.0f} s "
        f"({refusal}). "
        f"Start it with {INDEX}=0, see that this machine can reach that address, or wait longer "
        f"with {TIMEOUT}."
    ), []
