"""Atomic writes of files and folders."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["atomic_folder", "atomic_path", "check_output_dir"]


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block succeeds.

    Args:
        path: file to write; its folder is created if missing.

    Yields:
        Path with the same suffix, by which Keras and matplotlib choose the format. On an error the
        temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _make_public(temporary, 0o666)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _make_public(path, mode):
    """Give a private file or folder of `tempfile` the permissions of any other new one."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


def _sync(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that replaces it if the block succeeds.

    Args:
        folder: absolute path of the folder to create or replace; missing parents are created.

    Yields:
        An empty folder. On an error it is removed and `folder` is unchanged.
    """
    created = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    partial = Path(name)
    try:
        _make_public(partial, 0o777)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _replace_folder(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            with contextlib.suppress(OSError):  # missing, or no longer empty
                parent.rmdir()
        # The user knows the folder only by its final name.
        if isinstance(error, OSError) and error.errno:
            name = str(error.filename or partial)
            error.filename = str(folder) if name.startswith(str(partial)) else error.filename
        raise


def _replace_folder(new, folder):
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder):
    """Refuse a folder that `atomic_folder` could not replace: it is built beside the old one."""
    if os.path.ismount(folder):
        raise InputError(
            f"{folder} is a mount point, which cannot be replaced. Give a folder in it as --out."
        )
    parent = next(parent for parent in folder.parents if parent.exists())
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"No permission to write {folder}: it is built in {parent}, whose permissions do not "
            "allow that. Change them, or give another --out."
        )


def check_output_dir(
    folder: PathLike,
    files: Collection[str] | None,
    kind: str,
    *,
    marker: str = "metrics.json",
) -> bool:
    """Check a folder that a command will write, before any work.

    Args:
        folder: the folder; it may be missing.
        files: names that an earlier result, which will be replaced, may hold; None if the folder
            is only added to, whatever an earlier result holds.
        kind: what the result is, for the message: "reconstruction".
        marker: name of the file that identifies an earlier result.

    Returns:
        Whether the folder holds an earlier result.

    Raises:
        InputError: if `folder` is a file, holds anything but an earlier result, or cannot be
            replaced.
    """
    folder = Path(folder)
    if files is not None:
        _check_replaceable(folder.absolute())
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out must be a folder. Give a new one.")
    names = {item.name for item in folder.iterdir()} if folder.exists() else set()
    is_result = marker in names
    allowed = set(names if files is None else files) if is_result else set()
    # Where no content is replaced, hidden files are our locks or not our business. Where all of it
    # is replaced, a hidden file such as .git would be lost.
    ignored = {name for name in names if name.startswith(".")} if files is None else {".DS_Store"}
    unexpected = sorted(names - allowed - ignored)
    if unexpected:
        raise InputError(
            f"{folder} holds files that are not part of a {kind}: {', '.join(unexpected[:3])}. "
            "Give a new or empty folder as --out."
        )
    return is_result
