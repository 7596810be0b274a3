"""The run folder: what a training writes, and the lock that protects it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json

__all__ = ["FORMAT_VERSION", "Run"]

FORMAT_VERSION = 1
# The names that `atomic_path` gives what is not whole yet.
PARTIAL = ".?*-????????.?*"


class Run:
    """The folder of one training.

    `config.json` (what was asked), `model.keras` (best epoch), `state.npz` (all that going on
    needs) and `state.previous.npz` (the one before it), `history.csv`, `metrics.json`, `figures/`,
    `logs/` (TensorBoard), `environment.json`; for a VQ-VAE also `mean_image.npy`, the mean training
    image, and `code_grids.npz`, the codes of its archive once they were asked for.

    Args:
        path: the folder, or a `Run`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.model_path = self.path / "model.keras"
        self.checkpoint_path = self.path / "state.npz"
        self.previous_checkpoint_path = self.path / "state.previous.npz"
        self.history_path = self.path / "history.csv"
        self.metrics_path = self.path / "metrics.json"
        self.environment_path = self.path / "environment.json"
        self.mean_image_path = self.path / "mean_image.npy"
        self.code_grids_path = self.path / "code_grids.npz"
        self.figures = self.path / "figures"
        self.logs = self.path / "logs"

    def __fspath__(self) -> str:
        return str(self.path)

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

    def unexpected_files(self) -> list[str]:
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

    def trained_model_path(self) -> Path:
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
