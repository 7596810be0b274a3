"""The folder of a search: its lock, `search.json`, and the check that a command resumes it."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from brainslices.config import PRECISIONS
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path, check_output_dir
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION
from brainslices.schema import OBJECT, STRING, Rule
from brainslices.types import PathLike
from tuning.config import OBJECTIVES, SearchConfig
from tuning.records import REPAIR, check_records, read_trials, split_finals
from tuning.spaces import SPACES
from tuning.trial import describe_search
from tuning.workers import CallFailed, call

__all__ = ["DESCRIPTION_FILE", "locked_search", "read_description", "resumed_config"]

DESCRIPTION_FILE, SPACE_FILE = "search.json", "space.py"
# Fields of `SearchConfig` that matter to final trainings alone.
FINAL_LENGTHS = ("final_seeds", "final_epochs", "final_prior_epochs")
DESCRIPTION = {
    "archive_hash": STRING,
    "search": Rule(
        lambda value: OBJECT.is_valid(value) and value.get("objective") in OBJECTIVES,
        f"an object with an objective of {', '.join(OBJECTIVES)}",
    ),
    "space": Rule(lambda value: isinstance(value, dict | list), "the dimensions of the space"),
    "precision": Rule(PRECISIONS.__contains__, f"one of {', '.join(PRECISIONS)}"),
}


@contextlib.contextmanager
def locked_search(
    data: Path, out: Path, config: SearchConfig, devices: int | None
) -> Iterator[SearchConfig]:
    """Lock a search folder after checking the archive, the space and the options.

    Args:
        data: archive folder.
        out: search folder, created if missing.
        config: the search.
        devices: number of devices that share each batch of a trial; None for all visible ones.

    Yields:
        The configuration to run; of a resumed search with its original precision and space.

    Raises:
        InputError: if anything is invalid or differs from the search in the folder, which is then
            left unchanged.
    """
    from filelock import FileLock, Timeout

    check_output_dir(out, files=None, kind="search", marker=DESCRIPTION_FILE)
    description, path = _describe(data, config, devices), Path(out) / DESCRIPTION_FILE
    Path(out).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(out) / ".lock", blocking=False):
            if path.exists():
                previous = read_description(out)
                _check_resumable(out, previous, description)
                check_records(out)
                description["precision"] = previous["precision"]
                if not config.finalists:  # keep how those of an earlier command were trained
                    before = previous["search"]
                    stored = {name: before[name] for name in FINAL_LENGTHS if name in before}
                    description["search"] |= stored
                    config = dataclasses.replace(config, **stored)
            write_json(path, description)
            if config.space not in SPACES:
                # A copy: the file may change while trials are made of it.
                with atomic_path(Path(out) / SPACE_FILE) as temporary:
                    shutil.copyfile(config.space, temporary)
            yield _with_stored(out, config, description["precision"])
    except Timeout as error:
        raise InputError(
            f"{out} is in use by another search. Wait for it to end, or give another --out."
        ) from error


def resumed_config(data: Path, out: Path, config: SearchConfig) -> SearchConfig:
    """Check a worker's command against the chief's search and return the configuration to run.

    Raises:
        InputError: if anything is invalid or differs from the search in the folder.
    """
    previous = read_description(out)
    _check_resumable(out, previous, _describe(data, config))
    return _with_stored(out, config, previous["precision"])


def _with_stored(out, config, precision):
    space = config.space if config.space in SPACES else str(Path(out) / SPACE_FILE)
    return dataclasses.replace(config, precision=precision, space=space)


def _describe(data: Path, config: SearchConfig, devices: int | None = None) -> dict[str, Any]:
    tqdm.write("checking the data and the space ...", file=sys.stderr)
    try:
        description = call(describe_search, data, config, devices)
    except CallFailed as error:
        raise InputError(f"The defaults of the space cannot be built: {error}.") from error
    settings = {**dataclasses.asdict(config), "fix": description.pop("fix")}
    settings["space"] = Path(config.space).name  # the same file may have several paths
    header = {"format_version": FORMAT_VERSION, "kind": "search", "search": settings}
    return {**header, **description}


def read_description(out: PathLike) -> dict[str, Any]:
    """Read `search.json`, what a search was started with.

    Raises:
        InputError: if it is missing or corrupt.
    """
    path = Path(out) / DESCRIPTION_FILE
    return read_json(path, DESCRIPTION, hint=REPAIR)


def _check_resumable(out, previous, current):
    """Require the same search; only the number of trials may grow, and finalists be added."""
    searched, finals = split_finals(read_trials(out))
    started, trials = len(searched), current["search"]["trials"]
    if trials < started:
        raise InputError(
            f"`trials` must be at least {started}, the number of trials that the search in {out} "
            f"has started. Received: trials={trials}."
        )
    changes = []
    if previous["archive_hash"] != current["archive_hash"]:
        changes.append(f"another archive (content {previous['archive_hash'][:12]})")
    free = {"trials", "finalists"}
    if not finals or not current["search"]["finalists"]:
        free |= set(FINAL_LENGTHS)
    for name, value in current["search"].items():
        before = previous["search"].get(name)
        if name not in free and before != value:
            changes.append(f"{name}={before!r} (now: {value!r})")
    if not changes and previous["space"] != current["space"]:
        changes.append("other dimensions or values in its space")
    if not changes and any(previous.get(k) != current[k] for k in ("defaults", "space_hash")):
        changes.append("another function for its space")
    if changes:
        raise InputError(
            f"The search in {out} was started with {'; '.join(changes)}. "
            "Repeat its options (only --trials may grow, and --finalists change), or give a new "
            "--out."
        )
