"""Run a search: on this machine, or as the chief or a worker of several machines."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras_tuner
from tqdm import tqdm

from brainslices.distributed.ports import check_can_listen, wait_for_server
from brainslices.errors import InputError
from brainslices.types import PathLike
from tuning.config import SearchConfig
from tuning.live_table import live_table
from tuning.pool import ENVIRONMENT, LOCK_TIMEOUT_S, NO_GPUS, WorkerPool, last_line, run_process
from tuning.records import finished_trials, read_trials
from tuning.report import write_report
from tuning.resume import locked_search, resumed_config
from tuning.workers import spawn, stop

__all__ = ["ENVIRONMENT", "join", "search"]

POLL_INTERVAL_S = 1.0
# How long a worker tries to reach its chief.
CONNECT_TIMEOUT_S = 30.0
RESTART_HINT = "Finished trials are kept: restart the chief and its workers by the same commands."


def search(data: PathLike, out: PathLike, config: SearchConfig, workers: int) -> str:
    """Run or resume a search on this machine.

    Args:
        data: archive folder.
        out: search folder, created if missing.
        config: the search.
        workers: number of trials that run at the same time.

    Returns:
        Summary of the result, one paragraph.

    Raises:
        InputError: if something is invalid, or every trial failed. The folder of another search
            is left unchanged.
        KeyboardInterrupt: if the user stops the search; the trials' checkpoints are written.
    """
    data, out = Path(data), Path(out)
    devices = 1 if workers > 1 else None
    with locked_search(data, out, config, devices) as config, _resume_hint(out):
        pool = WorkerPool(data, out, config, workers)
        try:
            pool.start()
            with live_table(out, config) as refresh:
                while pool.is_running():
                    refresh()
                    time.sleep(POLL_INTERVAL_S)
        except KeyboardInterrupt:
            tqdm.write("stopping: the running trials write checkpoints", file=sys.stderr)
            raise
        finally:
            pool.stop()
        return write_report(out, config)


def join(data: PathLike, out: PathLike, config: SearchConfig, workers: int) -> str:
    """Run the chief or a worker of a search over several machines, by keras-tuner's variables.

    Args:
        data: archive folder.
        out: search folder, the same on all machines.
        config: the search.
        workers: must be 1; each worker of such a search is a command of its own.

    Returns:
        As `search`; from a worker only that it is done.

    Raises:
        InputError: as `search`, or if a variable is missing or the chief cannot be reached.
    """
    data, out = Path(data), Path(out)
    if workers != 1:
        raise InputError(
            "`workers` must be 1 where keras-tuner's environment variables are set: each worker "
            f"is a command of its own. Received: workers={workers}."
        )
    missing = [name for name in ENVIRONMENT if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{', '.join(missing)} must be set too: all of {', '.join(ENVIRONMENT)}, or none."
        )
    name, address, port = (os.environ[variable] for variable in ENVIRONMENT)
    os.environ.setdefault("no_grpc_proxy", address)
    if "chief" in name:
        _check_port(address, port)
        # Each worker checks for itself that its devices divide the batches.
        with locked_search(data, out, config, devices=1) as config, _resume_hint(out):
            _run_chief(data, out, config)
            return write_report(out, config)
    _connect(address, port)
    config = resumed_config(data, out, config)
    with _resume_hint(out):
        _run_worker(data, out, config)
    return f"Worker {name} is done: the search has ended."


def _run_chief(data, out, config):
    """Hand out trials to workers on several machines, and show the progress."""
    log = out / "logs" / "chief.txt"
    chief = spawn(run_process, data, out, config, log=log, environment=NO_GPUS)
    try:
        with live_table(out, config) as refresh:
            while chief.exitcode is None:
                refresh()
                time.sleep(POLL_INTERVAL_S)
    finally:
        stop([chief])
    if chief.exitcode:
        raise InputError(f"The chief has died ({last_line(log)}); see {log}. {RESTART_HINT}")


def _run_worker(data, out, config):
    """Run trials for a chief, possibly on another machine."""
    import grpc

    try:
        run_process(data, out, config)
    except grpc.RpcError as error:
        raise InputError(
            f"The chief of the search no longer answers ({error.code().name}). {RESTART_HINT}"
        ) from error
    except keras_tuner.errors.FatalError as error:
        raise InputError(f"This worker cannot continue: {error}. {RESTART_HINT}") from error


def _check_port(address, port):
    """Check that a chief can listen: gRPC lets two share a port, which mixes their searches."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return check_can_listen(address, int(port))
        except (OSError, ValueError, OverflowError) as error:
            # The chief of a search that was killed may not have exited yet.
            is_in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            if not is_in_use or time.monotonic() > deadline:
                raise InputError(
                    f"The chief cannot listen at {address}:{port} ({error}). KERASTUNER_ORACLE_IP "
                    "must be an address of this machine, KERASTUNER_ORACLE_PORT a free port of it."
                ) from error
        time.sleep(POLL_INTERVAL_S)


def _connect(address, port):
    """Wait until the chief listens."""
    try:
        wait_for_server(address, int(port), CONNECT_TIMEOUT_S)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"The chief of the search cannot be reached at {address}:{port} ({error}). Start it "
            "first, and check KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT."
        ) from error


@contextlib.contextmanager
def _resume_hint(out: Path) -> Iterator[None]:
    """Add to an interrupt what is saved and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        finished = len(finished_trials(read_trials(out)))
        raise KeyboardInterrupt(
            f"{finished} trials have finished; the checkpoints of the others are in {out}. "
            "Rerun the same command to resume."
        ) from None
