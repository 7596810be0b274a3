"""Several processes that train together: who they are, and whether all have come."""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Mapping

import keras

from brainslices.errors import InputError

__all__ = ["Cluster", "join"]

# The names are Keras's: `keras.distribution.initialize` reads them too.
ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
INDEX = "KERAS_DISTRIBUTION_PROCESS_ID"
TIMEOUT = "BRAINSLICES_JOIN_TIMEOUT"
TIMEOUT_S = 120.0
# A process that has died is missed after this long, and the others end.
HEARTBEAT_S = 60
KNOCK_S, RETRY_S = 5.0, 0.2


@dataclasses.dataclass(frozen=True)
class Cluster:
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
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Cluster | None":
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
                f"{' and '.join(missing)} must be set where {', '.join(given)} are: the first "
                "process's host:port, the number of processes, and which one this is, from 0."
            )
        host, _, port = given[ADDRESSES].split(",")[0].rpartition(":")
        numbers = {ADDRESSES: port, COUNT: given[COUNT], INDEX: given[INDEX]}
        wrong = [name for name, value in numbers.items() if not value.isdecimal()]
        if not wrong and not host or wrong == [ADDRESSES]:
            raise InputError(
                f"{ADDRESSES} must be host:port of the first process. "
                f"Received: {given[ADDRESSES]!r}."
            )
        if wrong:
            raise InputError(f"{wrong[0]} must be a number. Received: {given[wrong[0]]!r}.")
        count, index = int(given[COUNT]), int(given[INDEX])
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


def join() -> None:
    """Meet the other processes that the environment tells of, if it does; before any arithmetic.

    What processes other than the first print is dropped: they all would say the same.

    Raises:
        InputError: if the environment makes no sense, the backend is not JAX, or not every process
            has come in time.
    """
    cluster = Cluster.from_environment()
    if cluster is None or cluster.count == 1:
        return
    if keras.backend.backend() != "jax":
        raise InputError(
            f"{COUNT} is {cluster.count}: several processes train together under JAX alone. "
            "Set KERAS_BACKEND=jax, or unset the variable."
        )
    import jax

    _call_roll(cluster)
    jax.distributed.initialize(
        cluster.address,
        cluster.count,
        cluster.index,
        heartbeat_timeout_seconds=HEARTBEAT_S,
    )
    if cluster.index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)


def _call_roll(cluster):
    """Have everyone there, once each, before JAX: it would end the process without a word of why.

    The first process listens where JAX will; each other one tells its number and waits to hear
    how it went.
    """
    complaint = _report(cluster) if cluster.index else _hear_all(cluster)
    if complaint:
        raise InputError(complaint)


def _hear_all(cluster):
    until = time.monotonic() + cluster.timeout
    present, ends, complaint = set(), [], ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", cluster.port)))
        except OSError as error:
            return (
                f"Port {cluster.port} of this machine, which {ADDRESSES} names, cannot be used "
                f"({error.strerror}). Is another process with {INDEX}=0 there? Give each a number "
                "of its own, or choose a free port."
            )
        while len(present) < cluster.count - 1 and not complaint:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                end, _ = server.accept()
            except TimeoutError:
                complaint = _absence(cluster, present)
                continue
            index, count = _hear(stack.enter_context(end))
            if index is None:
                continue
            ends.append(end)
            complaint = _misfit(index, count, cluster, present)
            present.add(index)
        for end in ends:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                end.sendall(json.dumps(complaint).encode() + b"\n")
    return complaint


def _hear(end):
    """Number of the process at the other end, and how many it was told of; None for a stranger."""
    end.settimeout(KNOCK_S)
    try:
        told = json.loads(end.makefile().readline())
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
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError, ValueError),  # not there yet, or somebody else's port
            socket.create_connection((cluster.host, cluster.port), timeout=KNOCK_S) as end,
        ):
            # Process 0 waits as long, from when it came, and may be hearing a stranger out.
            end.settimeout(cluster.timeout + 2 * KNOCK_S)
            end.sendall(told)
            return json.loads(end.makefile().readline())
        time.sleep(RETRY_S)
    return (
        f"Process 0 could not be reached at {cluster.address} within {cluster.timeout:.0f} s. "
        f"Start it with {INDEX}=0, see that this machine can reach that address, or wait longer "
        f"with {TIMEOUT}."
    )
