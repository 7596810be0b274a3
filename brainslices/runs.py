"""Run folders: what a training leaves behind, written so that nothing is lost or half there."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from brainslices.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "Run",
    "atomic_folder",
    "atomic_path",
    "environment",
    "file_hash",
    "read_json",
    "require_output",
    "write_json",
]

FORMAT_VERSION = 1
# The names that `atomic_path` gives what is not whole yet.
PARTIAL = ".?*-????????.?*"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only if the block succeeds.

    Args:
        path: file to write; its folder is made if missing.

    Yields:
        Path with the same suffix (Keras and matplotlib choose the format by it), to be written in
        full. On an error it is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; these are as readable as others the user makes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path):
    with path.open("rb") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its place if the block succeeds.

    Args:
        folder: absolute path of the folder to make or to replace; its parents are made too.

    Yields:
        An empty folder to fill. On an error it vanishes and `folder` stays as it was.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _replace_folder(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not there, or meanwhile somebody else's too
                parent.rmdir()
        named = isinstance(error, OSError) and str(error.filename or partial)
        if named and error.errno and named.startswith(str(partial)):
            error.filename = str(folder)
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


def require_output(out: Path, names: Sequence[str], what: str) -> None:
    """Check a folder whose whole content will be replaced.

    Args:
        out: the folder.
        names: what an earlier result holds, `metrics.json` among it.
        what: which kind of result it is: "reconstruction".

    Raises:
        InputError: if it is a file, or holds anything but an earlier result.
    """
    if out.is_dir():
        found = {item.name for item in out.iterdir()}
        others = sorted(found - set(names) if "metrics.json" in found else found)
        if others:
            raise InputError(
                f"{out} holds other things than an earlier {what} "
                f"({', '.join(others[:3])}). Give a new or empty folder as --out."
            )
    elif out.exists():
        raise InputError(f"{out} is a file; --out must be a folder. Give a new one.")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. Not-a-number becomes null, as JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing, is not JSON, or holds something else than an object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give the path of a JSON file that exists.")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Restore it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object. Received: {type(value).__name__}.")
    return value


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """The folder of one training.

    `config.json` (what was asked), `model.keras` (best epoch), `state.npz` (all that going on
    needs) and `state.previous.npz` (the one before it), `history.csv`, `metrics.json`, `figures/`,
    `logs/` (TensorBoard), `environment.json`; for a VQ-VAE also `mean_image.npy`, the mean training
    image, and `code_grids.npz`, the codes of its archive once they were asked for.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.model_path = self.path / "model.keras"
        self.state_path = self.path / "state.npz"
        self.previous_state_path = self.path / "state.previous.npz"
        self.history_path = self.path / "history.csv"
        self.metrics_path = self.path / "metrics.json"
        self.environment_path = self.path / "environment.json"
        self.mean_image_path = self.path / "mean_image.npy"
        self.code_grids_path = self.path / "code_grids.npz"
        self.figures = self.path / "figures"
        self.logs = self.path / "logs"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; the operating system frees it if that process dies.

        What a process that was killed had half written is removed.

        Raises:
            InputError: if another process is using the folder.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", blocking=False):
                for folder in (self.path, self.figures):
                    for partial in folder.glob(PARTIAL):
                        partial.unlink(missing_ok=True)
                yield
        except Timeout as error:
            raise InputError(
                f"Run folder {self.path} is in use by another process. "
                "Wait for it to end, or give another --run."
            ) from error

    def strangers(self) -> list[str]:
        """Names of what lies in the folder and no training wrote before its first state."""
        ours = {
            self.config_path,
            self.environment_path,
            self.mean_image_path,
            self.code_grids_path,
            self.figures,
            self.logs,
        }
        found = self.path.iterdir() if self.path.exists() else ()
        return [item.name for item in found if item not in ours and item.name[0] != "."]

    def open_config(self, kind: str) -> dict:
        """Read `config.json` of a run that exists.

        Args:
            kind: "vqvae" or "pixelcnn", the kind of model that the caller can use.

        Returns:
            The object, in which `archive_hash`, `model` and `training` are sure to be.

        Raises:
            InputError: if the folder is no run, of another kind or format, or its file damaged.
        """
        if not self.config_path.is_file():
            raise InputError(
                f"{self.path} is not a run folder: it has no config.json. "
                "Give the folder that was passed to training as --run, or restore that file."
            )
        config = read_json(self.config_path)
        version = config.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"Run {self.path} has format version {version}, but this version of brainslices "
                f"reads {FORMAT_VERSION}. Use the version that wrote it, or train into a new --run."
            )
        if config.get("kind") != kind:
            raise InputError(
                f"Run {self.path} holds a model of kind {config.get('kind')!r}; "
                f"expected {kind!r}. Give the run folder of such a one."
            )
        missing = {"archive_hash", "model", "training"} - set(config)
        if missing:
            raise InputError(
                f"{self.config_path} lacks {', '.join(sorted(missing))}. Restore it, or train into "
                "a new --run."
            )
        return config

    def require_model(self) -> Path:
        """Path of the trained model.

        Raises:
            InputError: if no epoch of the run has finished yet, or the file is gone.
        """
        if not self.model_path.is_file() and self.history_path.is_file():
            raise InputError(
                f"Run {self.path} has finished epochs, but its model.keras is gone. Restore it, or "
                "train into a new --run."
            )
        if not self.model_path.is_file():
            raise InputError(
                f"Run {self.path} has no model.keras: no epoch has finished yet. "
                "Start the training command again; it goes on from where it stopped."
            )
        return self.model_path


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(**facts: object) -> dict:
    """What a number depends on beside the code: versions, device, and the `facts` given."""
    import importlib.metadata

    import keras

    packages = ("keras", "tensorflow", "jax", "numpy", "scikit-image")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **facts,
    }
