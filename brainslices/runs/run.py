"""The run folder: the files of one training, and the lock that protects them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brainslices.config import PRECISIONS
from brainslices.csv_files import read_rows
from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.runs.arrays import read_array
from brainslices.runs.json_files import read_json
from brainslices.schema import NATURAL, NUMBER, OBJECT, POSITIONS, STRING, Rule, check_fields
from brainslices.types import PathLike

__all__ = ["FORMAT_VERSION", "REPAIR", "Run"]

FORMAT_VERSION = 1
KINDS = ("vqvae", "pixelcnn")
# Names of the temporary files of `atomic_path`.
TEMPORARY = ".?*-????????.?*"
REPAIR = "Restore it, or train into a new --run."
CONFIG = {"archive_hash": STRING, "model": OBJECT, "training": OBJECT}
# Additional fields of the runs that depend on a VQ-VAE.
LINKS = {"vqvae_hash": STRING, "vqvae_run": STRING, "positions": POSITIONS}
ENVIRONMENT = {
    "archive": STRING,
    "command": STRING,
    "versions": OBJECT,
    "precision": Rule(lambda value: value in PRECISIONS[1:], f"one of {', '.join(PRECISIONS[1:])}"),
    "precision_reason": STRING,
    "earlier": Rule(lambda value: isinstance(value, list), "a list"),
}
RATES = dict.fromkeys(("nats_per_code", "bits_per_slice", "bits_per_pixel_prior"), NUMBER)
METRICS = {
    "epochs": NATURAL,
    "splits": Rule(lambda value: _are_rates(value), "rates of each split"),
}


class Run:
    """The folder of one training.

    `config.json` (the configuration), `model.keras` (best epoch), `state.npz` (checkpoint for
    exact resume) and `state.previous.npz` (the checkpoint before it), `history.csv`,
    `metrics.json`, `figures/`, `logs/` (TensorBoard), `environment.json`; for a VQ-VAE also
    `mean_image.npy`, the mean training image, and `code_grids.npz`, the codes of its archive once
    they are computed.

    Args:
        path: the folder, or a `Run`.
    """

    def __init__(self, path: PathLike):
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
        """Lock the folder for this process; the operating system unlocks it if the process dies.

        Temporary files of a process that was killed are removed.

        Raises:
            InputError: if another process is using the folder.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", blocking=False):
                for folder in (self.path, self.figures):
                    for file in folder.glob(TEMPORARY):
                        file.unlink(missing_ok=True)
                yield
        except Timeout as error:
            raise InputError(
                f"Run folder {self.path} is in use by another process. "
                "Wait until it ends, or give another --run."
            ) from error

    def unexpected_files(self) -> list[str]:
        """List the names of files that no training writes before its first checkpoint."""
        expected = {
            self.config_path,
            self.environment_path,
            self.mean_image_path,
            self.code_grids_path,
            self.figures,
            self.logs,
        }
        items = self.path.iterdir() if self.path.exists() else ()
        return [item.name for item in items if item not in expected and item.name[0] != "."]

    def open_config(self, kind: str | None = None) -> dict[str, Any]:
        """Read `config.json` of an existing run.

        Args:
            kind: expected kind of model, "vqvae" or "pixelcnn"; None for either.

        Returns:
            The object; it has the keys `archive_hash`, `model` and `training`; of a prior also
            `vqvae_hash`, `vqvae_run` and `positions`.

        Raises:
            InputError: if the folder is not a run, or its `config.json` has another kind or format
                version, lacks a key, is not valid JSON or has an invalid value.
        """
        if not self.config_path.is_file():
            raise InputError(
                f"{self.path} is not a run folder: it has no config.json. "
                "Give the folder that was passed to training as --run, or restore that file."
            )
        config = read_json(self.config_path, hint=REPAIR)
        version = config.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"Run {self.path} has format version {version}, but this version of brainslices "
                f"reads {FORMAT_VERSION}. Use the version that wrote it, or train into a new --run."
            )
        if config.get("kind") not in ((kind,) if kind else KINDS):
            raise InputError(
                f"Run {self.path} holds a model of kind {config.get('kind')!r}; "
                f"expected {kind or KINDS!r}. "
                f"Give the run folder of a {kind or 'finished'} training."
            )
        with reading(self.config_path, "configuration", REPAIR):
            check_fields(config, CONFIG | (LINKS if config["kind"] == "pixelcnn" else {}))
        return config

    def read_environment(self) -> dict[str, Any]:
        """Read `environment.json`; empty if there is none.

        Raises:
            InputError: if it cannot be read, is not valid JSON or has an invalid value.
        """
        path = self.environment_path
        return read_json(path, ENVIRONMENT, ENVIRONMENT) if path.exists() else {}

    def read_metrics(self) -> dict[str, Any]:
        """Read `metrics.json`; empty if there is none.

        Raises:
            InputError: as `read_environment`.
        """
        path = self.metrics_path
        return read_json(path, METRICS, METRICS) if path.exists() else {}

    def read_history(self) -> dict[str, list[float]]:
        """Read `history.csv`: name -> a value for each finished epoch; empty if there is none.

        Raises:
            InputError: if it cannot be read or is not a table of numbers.
        """
        if not self.history_path.exists():
            return {}
        with reading(self.history_path, "table of numbers", REPAIR):
            rows = [*read_rows(self.history_path).values()]
            history = {name: [float(row[name]) for row in rows] for name in rows[0]}
            if history["epoch"] != [*range(1, len(rows) + 1)]:
                raise ValueError("its epochs are not 1, 2, 3, ...")
            return history

    def read_mean_image(self, shape: tuple[int, int]) -> np.ndarray:
        """Read `mean_image.npy`, the mean training image, float of shape (rows, cols) in [0, 1].

        Args:
            shape: the expected shape.

        Raises:
            InputError: if it is missing, cannot be read, or holds something else.
        """
        hint = (
            "Start the training command again: it rewrites the file and trains no further than "
            "the given number of epochs."
        )
        with reading(self.mean_image_path, "mean image", hint):
            image = np.array(read_array(self.mean_image_path))
            if image.shape != shape or not ((image >= 0) & (image <= 1)).all():
                raise ValueError(f"expected values in [0, 1] of shape {shape}")
        return image

    def trained_model_path(self) -> Path:
        """Return the path of the trained model.

        Raises:
            InputError: if no epoch has finished yet, or the file is missing.
        """
        if not self.model_path.is_file() and self.history_path.is_file():
            raise InputError(
                f"Run {self.path} has finished epochs, but its model.keras is gone. Restore "
                "it, or train into a new --run."
            )
        if not self.model_path.is_file():
            raise InputError(
                f"Run {self.path} has no model.keras: no epoch has finished yet. "
                "Run the training command again; it resumes from the last checkpoint."
            )
        return self.model_path


def _are_rates(splits):
    return OBJECT.is_valid(splits) and all(check_fields(rates, RATES) for rates in splits.values())
