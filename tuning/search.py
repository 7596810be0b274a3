"""A search from its first process to its report: who does what, and what happens when one dies."""

import contextlib
import dataclasses
import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras_tuner
from keras_tuner.src.distribute import oracle_client
from tqdm import tqdm

from brainslices.distributed.devices import gpus
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION
from tuning.config import SearchConfig
from tuning.live_table import shown
from tuning.records import check_records, finished, read_trials
from tuning.report import write_report
from tuning.spaces import SPACES
from tuning.trial import check, folder_of
from tuning.tuner import Searcher
from tuning.workers import GRACE_S, CallFailed, call, spawn, stop

__all__ = ["join", "search"]

POLL_INTERVAL_S = 1.0
# A process that dies this often without a trial ended between is not worth starting again.
MAX_RESTARTS = 3
# How long a worker tries to reach its chief, and a search waits for the last one's processes.
CHIEF_S, ORACLE_S = 30.0, 30.0
# How long a worker waits for an answer: the chief may be choosing another's trial. On one machine
# a chief that has died is seen at once.
ANSWER_S, CREW_ANSWER_S = 50.0, 600.0
# A worker's trial may need its whole grace to stop, and then the worker has to end.
CREW_GRACE_S = GRACE_S + 15
AGAIN = "What has ended is kept: start the chief and its workers again by the same commands."
VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def search(data: Path, out: Path, config: SearchConfig, workers: int) -> str:
    """Run a search on this machine, or go on with one that was stopped.

    Args:
        data: the archive's folder.
        out: the search's folder, made if missing.
        config: the search.
        workers: how many trials run at a time.

    Returns:
        What was found, in words.

    Raises:
        InputError: if something cannot be used, or every trial failed; a folder of another search
            is left as it was.
        KeyboardInterrupt: stopped by the user; the trials' states are saved.
    """
    devices = 1 if workers > 1 else None
    with _locked_search(data, out, config, devices) as config, _stoppable(out):
        crew = WorkerPool(data, out, config, workers)
        try:
            crew.start()
            with shown(out, config, lambda values: folder_of(out, config, values)) as update:
                while crew.works():
                    update()
                    time.sleep(POLL_INTERVAL_S)
        except KeyboardInterrupt:
            tqdm.write("stopping: the trials under way save their states", file=sys.stderr)
            raise
        finally:
            crew.stop()
        return write_report(out, config)


def join(data: Path, out: Path, config: SearchConfig, workers: int) -> str:
    """Take part in a search over several machines, as keras-tuner's environment variables say.

    Args:
        data: the archive's folder.
        out: the search's folder, the same for all machines.
        config: the search.
        workers: 1; each worker of such a search is a command of its own.

    Returns:
        As `search`; from a worker only that it is done.

    Raises:
        InputError: as `search`, or if a variable is missing or the chief cannot be reached.
    """
    if workers != 1:
        raise InputError(
            "`workers` must be 1 where keras-tuner's environment variables are set: each worker "
            f"is a command of its own then. Received: workers={workers}."
        )
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{', '.join(missing)} must be set too: all of {', '.join(VARIABLES)}, or none."
        )
    os.environ.setdefault("no_grpc_proxy", os.environ[VARIABLES[1]])
    name, address, port = (os.environ[variable] for variable in VARIABLES)
    if "chief" in name:
        _require_port(address, port)
        # Each worker sees for itself what its devices can share.
        with _locked_search(data, out, config, devices=1) as config, _stoppable(out):
            _run_chief(data, out, config)
            return write_report(out, config)
    _reach(address, port)
    begun = _read_description(out)
    _check_resumable(out, begun, _describe(data, config))
    config = _resumed_config(out, config, begun["precision"])
    with _stoppable(out):
        _run_worker(data, out, config)
    return f"Worker {name} is done: the search has ended."


def _run_chief(data, out, config):
    """Deal the trials of a search over several machines, and show how it goes."""
    log = Path(out) / "logs" / "chief.txt"
    chief = spawn(run_process, data, out, config, log=log, environment={"CUDA_VISIBLE_DEVICES": ""})
    try:
        with shown(out, config, lambda values: folder_of(out, config, values)) as update:
            while chief.exitcode is None:
                update()
                time.sleep(POLL_INTERVAL_S)
    finally:
        stop([chief])
    if chief.exitcode:
        raise InputError(
            f"The chief of the search has ended ({_last_words(log)}); {log} tells more. {AGAIN}"
        )


def _run_worker(data, out, config):
    """Run trials for a chief on another machine, maybe."""
    import grpc

    try:
        run_process(data, out, config)
    except grpc.RpcError as error:
        raise InputError(
            f"The chief of the search no longer answers ({error.code().name}). {AGAIN}"
        ) from error
    except keras_tuner.errors.FatalError as error:
        raise InputError(f"This worker cannot go on: {error}. {AGAIN}") from error


def run_process(data: Path, out: Path, config: SearchConfig, patience: float = ANSWER_S) -> None:
    """Be one process of a search: its chief, a worker, or the only one.

    Args:
        data: the archive's folder.
        out: the search's folder.
        config: the search.
        patience: seconds that a worker waits for an answer of its chief.
    """
    # keras-tuner would wait an hour.
    oracle_client.TIMEOUT = patience
    if "chief" in os.environ.get(VARIABLES[0], "chief"):
        from filelock import FileLock

        # Processes of a search that was killed may still be dying.
        with FileLock(Path(out) / ".oracle.lock", timeout=ORACLE_S):
            Searcher(data, out, config).search()
    else:
        Searcher(data, out, config).search()


class WorkerPool:
    """The processes of a search; one that dies is started again.

    A search of one worker is a single process. With more, each worker is one and the chief another,
    which deals them the trials.
    """

    def __init__(self, data, out, config, workers):
        self.words, self.out, self.workers = (data, out, config), Path(out), workers
        self.gpus = visible_gpus(call(_count_gpus)) if workers > 1 else []
        self.crew, self.deaths, self.ended = {}, 0, self._count_ended()

    def start(self) -> None:
        """Start all processes."""
        self.crew = {}
        if self.workers == 1:
            self.crew["search"] = self._spawn("search")
            return
        address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": _free_port()}
        self.address = {**address, "no_grpc_proxy": "127.0.0.1"}
        for name in ("chief", *(f"worker{number}" for number in range(self.workers))):
            self.crew[name] = self._spawn(name)

    def _spawn(self, name):
        log = self.out / "logs" / f"{name}.txt"
        if name == "search":
            return spawn(run_process, *self.words, log=log)
        words = (*self.words, CREW_ANSWER_S)
        environment, cores = {**self.address, "KERASTUNER_TUNER_ID": name}, None
        if name == "chief":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        else:
            number = int(name.removeprefix("worker"))
            cores = share_of_cores(number, self.workers)
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        return spawn(run_process, *words, log=log, environment=environment, cores=cores)

    def works(self) -> bool:
        """Whether the search goes on; starts again what has died."""
        if "chief" in self.crew and self.crew["chief"].exitcode == 0:
            return False  # it ends when no trial is left and none under way
        dead = [name for name, one in self.crew.items() if one.exitcode not in (None, 0)]
        if dead:
            self._count_death(dead[0])
            if "chief" in dead:
                # Workers cannot go on without it, and must not report to the next in between.
                self.stop()
                self.start()
            else:
                self.crew |= {name: self._spawn(name) for name in dead}
        return any(one.exitcode is None for name, one in self.crew.items() if name != "chief")

    def _count_death(self, name):
        ended = self._count_ended()
        self.deaths = 1 if ended > self.ended else self.deaths + 1
        self.ended = ended
        if self.deaths >= MAX_RESTARTS:
            log = self.out / "logs" / f"{name}.txt"
            raise InputError(
                f"The process {name!r} of the search died {MAX_RESTARTS} times in a row "
                f"({_last_words(log)}); {log} tells more. The same command goes on."
            )

    def _count_ended(self):
        return len(finished(read_trials(self.out)))

    def stop(self) -> None:
        """End all processes, with the states of their trials saved."""
        stop([one for one in self.crew.values() if one.exitcode is None], CREW_GRACE_S)


def _last_words(log):
    """The last line that a process has written."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return (text.strip().splitlines() or ["it wrote nothing"])[-1]


def _count_gpus() -> int:
    return len(gpus())


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def visible_gpus(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be of a process that gets one of the GPUs that we may use.

    Args:
        count: how many GPUs this process sees.
    """
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name.strip() for name in asked.split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def share_of_cores(number: int, workers: int) -> list[int] | None:
    """This process's cores, dealt to the workers; with too few of them some share one.

    Args:
        number: of the worker, from 0.
        workers: how many there are.

    Returns:
        Numbers of the worker's cores; None where the system does not tell them.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores[number::workers] or [cores[number % len(cores)]]


def _require_port(address, port):
    """See that a chief can listen; two of them may share a port, and mix their searches."""
    deadline = time.monotonic() + ORACLE_S
    while True:
        try:
            with socket.socket() as probe:
                # Connections of a chief that has ended are no hindrance, one that listens is.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, int(port)))
                return
        except (OSError, ValueError, OverflowError) as error:
            # The chief of a search that was killed may still be dying.
            if getattr(error, "errno", None) == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL_S)
                continue
            raise InputError(
                f"The chief cannot listen at {address}:{port} ({error}). KERASTUNER_ORACLE_IP must "
                "be an address of this machine, and KERASTUNER_ORACLE_PORT a free port of it."
            ) from error


def _reach(address, port):
    """Wait for the chief to listen."""
    deadline = time.monotonic() + CHIEF_S
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=5).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline or isinstance(error, ValueError):
                raise InputError(
                    f"The chief of the search cannot be reached at {address}:{port} ({error}). "
                    "Start it first, and check KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT."
                ) from error
            time.sleep(1)


@contextlib.contextmanager
def _locked_search(data, out, config, devices) -> Iterator[SearchConfig]:
    """Hold the search's folder, after all that was asked for has been checked.

    Yields the configuration as the search was begun. A trial's batches are shared by so many
    devices; None for all that there are.
    """
    from filelock import FileLock, Timeout

    description, path = _describe(data, config, devices), _description(out)
    _require_free(out)
    Path(out).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(out) / ".lock", blocking=False):
            if path.exists():
                begun = _read_description(out)
                _check_resumable(out, begun, description)
                check_records(out)
                description["precision"] = begun["precision"]
            write_json(path, description)
            if config.space not in SPACES:
                _keep_space(out, config.space)
            yield _resumed_config(out, config, description["precision"])
    except Timeout as error:
        raise InputError(
            f"{out} is in use by another search. Wait for it to end, or give another --out."
        ) from error


def _keep_space(out, space):
    """Copy the file of a space: it may be changed while trials are made of it."""
    with atomic_path(_kept_space(out)) as temporary:
        shutil.copyfile(space, temporary)


def _kept_space(out):
    return Path(out) / "space.py"


def _resumed_config(out, config, precision):
    """The configuration, with the search's own precision and copy of the space."""
    space = config.space if config.space in SPACES else str(_kept_space(out))
    return dataclasses.replace(config, precision=precision, space=space)


def _description(out):
    return Path(out) / "search.json"


def _read_description(out):
    path = _description(out)
    begun = read_json(path)
    missing = {"archive_hash", "search", "space", "precision"} - set(begun)
    if missing:
        raise InputError(
            f"{path} is damaged (no {', '.join(sorted(missing))}). Restore it from a copy, or "
            "search into a new --out."
        )
    return begun


def _describe(data, config, devices=None) -> dict:
    tqdm.write("checking the data and the space ...", file=sys.stderr)
    try:
        found = call(check, data, config, devices)
    except CallFailed as error:
        raise InputError(f"The defaults of the space cannot be built: {error}.") from error
    asked = {**dataclasses.asdict(config), "fix": found.pop("fix")}
    asked["space"] = Path(config.space).name  # a file may be named in several ways
    return {"format_version": FORMAT_VERSION, "kind": "search", "search": asked, **found}


def _require_free(out):
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out must be a folder. Give a new one.")
    others = (
        [] if not out.exists() else [each.name for each in out.iterdir() if each.name[0] != "."]
    )
    if others and not _description(out).exists():
        raise InputError(
            f"{out} holds other things ({', '.join(sorted(others)[:3])}) and no search to go on "
            "with. Give a new or empty folder as --out."
        )


def _check_resumable(out, begun, asked):
    """A search goes on only as what it was begun; more trials may be asked of it."""
    changes = []
    if begun["archive_hash"] != asked["archive_hash"]:
        changes.append(f"another archive (content {begun['archive_hash'][:12]})")
    before, count = begun["search"], len(read_trials(out))
    if asked["search"]["trials"] < count:
        raise InputError(
            f"The search in {out} has begun {count} trials already: ask for as many or more. "
            f"Received: trials={asked['search']['trials']}."
        )
    for name, value in asked["search"].items():
        if name != "trials" and before.get(name) != value:
            changes.append(f"{name}={before.get(name)!r} (asked: {value!r})")
    if not changes and begun["space"] != asked["space"]:
        changes.append("other dimensions or values in its space")
    if not changes and any(begun.get(key) != asked[key] for key in ("defaults", "space_hash")):
        changes.append("another function for its space")
    if changes:
        raise InputError(
            f"The search in {out} was begun with {'; '.join(changes)}. "
            "Ask for the same (or for more trials), or give a new --out."
        )


@contextlib.contextmanager
def _stoppable(out) -> Iterator[None]:
    """Say what happens next when the search is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        ended = len(finished(read_trials(out)))
        raise KeyboardInterrupt(
            f"{ended} trials have ended, the others' states are saved in {out}. "
            "The same command goes on from there."
        ) from None
