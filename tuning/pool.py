"""The processes of a search on one machine."""

import os
import socket
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from brainslices.distributed.devices import list_gpus
from brainslices.errors import InputError
from tuning.compat import set_client_timeout
from tuning.config import SearchConfig
from tuning.records import finished_trials, read_trials
from tuning.tuner import Searcher
from tuning.workers import GRACE_S, call, spawn, stop

__all__ = ["ENVIRONMENT", "LOCK_TIMEOUT_S", "WorkerPool", "last_line", "run_process"]

# Deaths of processes in a row, without a trial finished in between, that end the search.
MAX_RESTARTS = 3
# How long a worker waits for a reply of its chief, which may be choosing another worker's trial.
# On one machine the death of the chief is noticed at once.
REPLY_TIMEOUT_S, LOCAL_REPLY_TIMEOUT_S = 50.0, 600.0
# Processes of a search that was killed end within this time.
LOCK_TIMEOUT_S = 30.0
# A worker's trial may use its whole grace period, and then the worker has to exit.
WORKER_GRACE_S = GRACE_S + 15
# keras-tuner's variables: role of the process, address of the chief.
ENVIRONMENT = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}


def run_process(
    data: Path, out: Path, config: SearchConfig, reply_timeout: float = REPLY_TIMEOUT_S
) -> None:
    """Run the only process, the chief or a worker of a search, by keras-tuner's variables.

    Args:
        data: archive folder.
        out: search folder.
        config: the search.
        reply_timeout: seconds that a worker waits for a reply of its chief.
    """
    set_client_timeout(reply_timeout)
    if "chief" not in os.environ.get(ENVIRONMENT[0], "chief"):
        Searcher(data, out, config).search()
        return
    from filelock import FileLock

    # Processes of a search that was killed may not have exited yet.
    with FileLock(Path(out) / ".oracle.lock", timeout=LOCK_TIMEOUT_S):
        Searcher(data, out, config).search()


class WorkerPool:
    """The processes of a search; one that dies is restarted.

    One worker is a single process. Several are one process each, and a chief that hands out trials.
    """

    def __init__(self, data: Path, out: Path, config: SearchConfig, workers: int):
        self.arguments, self.out, self.workers = (data, out, config), Path(out), workers
        self.gpus = visible_gpus(call(_count_gpus)) if workers > 1 else []
        self.processes: dict[str, BaseProcess] = {}
        self.deaths, self.finished = 0, self._count_finished()

    def start(self) -> None:
        """Start all processes."""
        if self.workers == 1:
            names = ["search"]
        else:
            address = {ENVIRONMENT[1]: "127.0.0.1", ENVIRONMENT[2]: _free_port()}
            self.address = {**address, "no_grpc_proxy": "127.0.0.1"}
            names = ["chief", *(f"worker{number}" for number in range(self.workers))]
        self.processes = {name: self._spawn(name) for name in names}

    def _spawn(self, name):
        log = self._log(name)
        if name == "search":
            return spawn(run_process, *self.arguments, log=log)
        environment = {**self.address, ENVIRONMENT[0]: name}
        if name == "chief":
            environment |= NO_GPUS
        elif self.gpus:
            gpu = int(name.removeprefix("worker")) % len(self.gpus)
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[gpu]
        arguments = (*self.arguments, LOCAL_REPLY_TIMEOUT_S)
        return spawn(run_process, *arguments, log=log, environment=environment)

    def _log(self, name):
        return self.out / "logs" / f"{name}.txt"

    def is_running(self) -> bool:
        """Restart dead processes; False once the search has ended.

        Raises:
            InputError: if processes die again and again.
        """
        if "chief" in self.processes and self.processes["chief"].exitcode == 0:
            return False  # it exits when no trial is left and none runs
        dead = [name for name, one in self.processes.items() if one.exitcode not in (None, 0)]
        if dead:
            self._count_death(dead[0])
            if "chief" in dead:
                # Its workers cannot continue, and must not report to the next chief meanwhile.
                self.stop()
                self.start()
            else:
                self.processes |= {name: self._spawn(name) for name in dead}
        return any(one.exitcode is None for name, one in self.processes.items() if name != "chief")

    def _count_death(self, name):
        finished = self._count_finished()
        self.deaths = 1 if finished > self.finished else self.deaths + 1
        self.finished = finished
        if self.deaths >= MAX_RESTARTS:
            log = self._log(name)
            raise InputError(
                f"Processes of the search died {MAX_RESTARTS} times without a finished trial "
                f"in between, the last time {name!r} ({last_line(log)}); see {log}. Rerun the same "
                "command to resume."
            )

    def _count_finished(self):
        return len(finished_trials(read_trials(self.out)))

    def stop(self) -> None:
        """Stop all processes; the trainings of their trials write checkpoints."""
        stop([one for one in self.processes.values() if one.exitcode is None], WORKER_GRACE_S)


def last_line(log: Path) -> str:
    """Return the last line of a process's log."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return (text.strip().splitlines() or ["no output"])[-1]


def _count_gpus() -> int:
    return len(list_gpus())


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def visible_gpus(count: int) -> Sequence[str]:
    """List values of CUDA_VISIBLE_DEVICES, one for each of the `count` GPUs of this process."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in variable.split(",") if name.strip()]
    return (names or [str(number) for number in range(count)])[:count]
