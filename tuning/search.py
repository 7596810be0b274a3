"""A search from its first process to its report: who does what, and what happens when one dies."""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import keras_tuner
from keras_tuner.src.distribute import oracle_client

from brainslices.devices import gpus
from brainslices.errors import InputError
from brainslices.processes import CallFailed, call, spawn, stop
from brainslices.runs import FORMAT_VERSION, read_json, write_json
from tuning.config import SearchConfig
from tuning.records import finished, read_trials
from tuning.report import write_report
from tuning.screen import shown
from tuning.trial import check, folder_of
from tuning.tuner import Searcher

__all__ = ["join", "search"]

LOOK_S = 1.0
# A process that dies this often without a trial ended between is not worth starting again.
DEATHS = 3
# How long a worker tries to reach its chief, and a search waits for the last one's processes.
CHIEF_S, ORACLE_S = 30.0, 30.0
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
    if workers < 1:
        raise InputError(f"`workers` must be at least 1. Received: workers={workers}.")
    with _held(data, out, config) as config, _stoppable(out):
        crew = _Crew(data, out, config, workers)
        try:
            crew.start()
            with shown(out, config, lambda values: folder_of(out, config, values)) as update:
                while crew.works():
                    update()
                    time.sleep(LOOK_S)
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
    if "chief" in os.environ[VARIABLES[0]]:
        with _held(data, out, config) as config, _stoppable(out), _told():
            take_part(data, out, config)
            return write_report(out, config)
    _reach(os.environ[VARIABLES[1]], os.environ[VARIABLES[2]])
    begun = read_json(_description(out))
    _require_same(out, begun, _describe(data, config))
    with _stoppable(out), _told():
        take_part(data, out, dataclasses.replace(config, precision=begun["precision"]))
    return f"Worker {os.environ[VARIABLES[0]]} is done: the search has ended."


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What ends a process of keras-tuner, as a message."""
    import grpc

    try:
        yield
    except (grpc.RpcError, keras_tuner.errors.FatalError, RuntimeError) as error:
        reason = error.code().name if hasattr(error, "code") else error
        raise InputError(
            f"The search's processes lost each other ({reason}). What has ended is kept: start the "
            "chief and its workers again by the same commands."
        ) from error


def take_part(data: Path, out: Path, config: SearchConfig) -> None:
    """Be one process of a search: its chief, a worker, or the only one."""
    # keras-tuner lets a worker wait an hour for an answer.
    oracle_client.TIMEOUT = CHIEF_S
    if "chief" in os.environ.get(VARIABLES[0], "chief"):
        from filelock import FileLock

        # Processes of a search that was killed may still be dying.
        with FileLock(Path(out) / ".oracle.lock", timeout=ORACLE_S):
            Searcher(data, out, config).search()
    else:
        Searcher(data, out, config).search()


class _Crew:
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
            return spawn(take_part, *self.words, log=log)
        environment, cores = {**self.address, "KERASTUNER_TUNER_ID": name}, None
        if name == "chief":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        else:
            number = int(name.removeprefix("worker"))
            cores = share_of_cores(number, self.workers)
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        return spawn(take_part, *self.words, log=log, environment=environment, cores=cores)

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
        if self.deaths >= DEATHS:
            log = self.out / "logs" / f"{name}.txt"
            last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
            raise InputError(
                f"The process {name!r} of the search died {DEATHS} times in a row ({last}). "
                f"{log} tells more. The same command goes on."
            )

    def _count_ended(self):
        return len(finished(read_trials(self.out)))

    def stop(self) -> None:
        """End all processes, with the states of their trials saved."""
        stop([one for one in self.crew.values() if one.exitcode is None])


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
def _held(data, out, config) -> Iterator[SearchConfig]:
    """Hold the search's folder, after all that was asked for has been checked.

    Yields the configuration with the precision that the search was begun in.
    """
    from filelock import FileLock, Timeout

    description, path = _describe(data, config), _description(out)
    _require_free(out)
    Path(out).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(out) / ".lock", blocking=False):
            if path.exists():
                begun = read_json(path)
                _require_same(out, begun, description)
                description["precision"] = begun["precision"]
            write_json(path, description)
            yield dataclasses.replace(config, precision=description["precision"])
    except Timeout as error:
        raise InputError(
            f"{out} is in use by another search. Wait for it to end, or give another --out."
        ) from error


def _description(out):
    return Path(out) / "search.json"


def _describe(data, config) -> dict:
    try:
        found = call(check, data, config)
    except CallFailed as error:
        raise InputError(f"The defaults of the space cannot be built: {error}.") from error
    asked = {**dataclasses.asdict(config), "fix": sorted(config.fix)}
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


def _require_same(out, begun, asked):
    """A search goes on only as what it was begun; more trials may be asked of it."""
    changes = []
    if begun.get("archive_hash") != asked["archive_hash"]:
        changes.append(f"another archive (content {str(begun.get('archive_hash'))[:12]})")
    before, count = begun.get("search", {}), len(read_trials(out))
    if asked["search"]["trials"] < count:
        raise InputError(
            f"The search in {out} has begun {count} trials already: ask for as many or more. "
            f"Received: trials={asked['search']['trials']}."
        )
    for name, value in asked["search"].items():
        if name != "trials" and before.get(name) != value:
            changes.append(f"{name}={before.get(name)!r} (asked: {value!r})")
    if not changes and begun.get("space") != asked["space"]:
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
    """Let SIGTERM stop the search as Ctrl-C does, and say what happens next."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        ended = len(finished(read_trials(out)))
        raise KeyboardInterrupt(
            f"{ended} trials have ended, the others' states are saved in {out}. "
            "The same command goes on from there."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
