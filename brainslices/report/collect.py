"""What a report shows, read from the files of runs, reconstructions and samples."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brainslices.csv_files import read_rows
from brainslices.data.archive import SliceArchive
from brainslices.errors import CorruptFileError, InputError
from brainslices.evaluation import scores
from brainslices.reading import reading
from brainslices.report.names import folder_name
from brainslices.runs.json_files import read_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from brainslices.schema import (
    INTEGER,
    NATURAL,
    NUMBER,
    OBJECT,
    OPTIONAL_NUMBER,
    POSITIVE,
    check_fields,
)
from brainslices.types import PathLike
from brainslices.visualization.examples import read_examples
from brainslices.visualization.figures import ReconstructionRow

__all__ = [
    "Reconstruction",
    "RunRecord",
    "SampledSlice",
    "Sampling",
    "Scoring",
    "Search",
    "is_of_training_archive",
    "read_reconstruction",
    "read_run",
    "read_sampling",
    "read_scoring",
]

SCORES = dict.fromkeys(scores.SCORES, NUMBER)
INTERVAL = dict.fromkeys(("ssim_foreground_low", "ssim_foreground_high"), NUMBER)
RECONSTRUCTION = SCORES | INTERVAL | {"codebook_usage": NUMBER, "bits_per_pixel_raw": NUMBER}
RECONSTRUCTION |= {"subjects": NATURAL, "slices": NATURAL, "num_embeddings": POSITIVE}
RECONSTRUCTION |= {"floor_black": OBJECT, "floor_mean_image": OBJECT}
# With --prior.
RECONSTRUCTION_RATES = {
    f"{name}{end}": NUMBER
    for name in ("bits_per_pixel_prior", "nats_per_code")
    for end in ("", "_low", "_high")
}
CODEC = SCORES | {"bits_per_pixel": NUMBER}
MEASURES = ("pairwise_ms_ssim", "nearest_train_ssim", "frechet_distance")
SAMPLING = {"samples": NATURAL, "temperature": NUMBER, "seed": INTEGER}
COMPARISON = {f"{name}{end}": OPTIONAL_NUMBER for name in MEASURES for end in ("", "_real")}
SAMPLE_SCORES = [
    f"{name}{real}{end}"
    for name in (*MEASURES, "density", "coverage")
    for real in ("", "_real")
    for end in ("", "_low", "_high")
]
SCORING = {
    f"{name}{end}": NUMBER
    for name in ("bits_per_slice", "nats_per_code", "percentile")
    for end in ("", "_low", "_high")
}
SCORING |= {"nats_per_code_validate": NUMBER, "subjects": NATURAL, "slices": NATURAL}
RUN_SCORES = ("ssim", "ssim_foreground", "train_codebook_usage", "seconds")
RUN = dict.fromkeys(RUN_SCORES, OPTIONAL_NUMBER)
RUN |= dict.fromkeys(("entropy", "nats_per_code", "nats_per_code_by_position"), OPTIONAL_NUMBER)
RUN |= {"splits": OBJECT, "floor_mean_image": OBJECT}
RUN_FLOOR = {"ssim_foreground": OPTIONAL_NUMBER}
RUN_SPLIT = {"nats_per_code": NUMBER, "nats_per_code_by_position": NUMBER}
# Kind of model -> the column of its history that chooses the best epoch, its label, the best value.
OBJECTIVES: dict[str, tuple[str, str, Callable]] = {
    "vqvae": ("val_ssim_foreground", "ssim_foreground", np.max),
    "pixelcnn": ("val_nats_per_code", "nats per code", np.min),
}
MAX_SHOWN = 64


def is_of_training_archive(reconstruction: Mapping[str, Any]) -> bool:
    """Return whether the metrics of a reconstruction are of the archive of the model's training."""
    return reconstruction.get("archive_hash") == reconstruction.get("training_archive_hash")


@dataclass(frozen=True)
class RunRecord:
    """One training.

    Attributes:
        run: the run folder.
        config: `config.json`.
        environment: `environment.json`; empty if it is missing.
        metrics: `metrics.json`; empty if the training has not ended.
        history: column -> one value per epoch.
        archive: path of the training slices, if it is known.
        counts: split -> number of subjects and slices; None if the archive was moved.
    """

    run: Run
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    history: dict[str, list[float]]
    archive: str | None
    counts: dict[str, dict[str, int]] | None

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version that the training ran with, Python included."""
        python = {"Python": self.environment["python"]} if "python" in self.environment else {}
        return python | self.environment.get("versions", {})

    @property
    def name(self) -> str:
        """Name of the folder and of the one that it is in."""
        return folder_name(self.run.path)

    @property
    def kind(self) -> str:
        """Kind of the model, "vqvae" or "pixelcnn"."""
        return self.config["kind"]

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.history.get("epoch", ()))

    @property
    def status(self) -> str:
        """How far the training has come, in words."""
        planned = self.config["training"].get("epochs", "?")
        if not self.epochs:
            return f"no epoch of {planned} has finished"
        if not self.metrics or self.metrics.get("epochs") != self.epochs:
            return f"half trained: {self.epochs} of {planned} epochs"
        stopped = f" of {planned}, stopped early" if self.epochs != planned else ""
        return f"trained, {self.epochs} epochs{stopped}"

    @property
    def score_so_far(self) -> str:
        """Validation score of the best finished epoch, in words; empty without any."""
        name, label, best = OBJECTIVES[self.kind]
        values = np.array(self.history.get(name, ()))
        values = values[np.isfinite(values)]
        return f"validation {label} {best(values):.3f}" if values.size else ""

    @cached_property
    def model_hash(self) -> str | None:
        """SHA-256 of the trained model; None without one."""
        path = self.run.model_path
        return file_hash(path) if path.is_file() else None

    @property
    def command(self) -> str:
        """Command of the training: the recorded one, or one that repeats it in a new folder."""
        if recorded := self.environment.get("command"):
            return recorded
        source = f"--data {self.environment.get('archive', 'ARCHIVE')}"
        if self.kind == "pixelcnn":
            source = f"--vqvae {self.config['vqvae_run']}"
        script = f"python scripts/train_{self.kind}.py"
        return f"{script} {source} --config {self.run.config_path} --run NEW_RUN"


class Output:
    """A folder that a command wrote.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the folder and of the one that it is in."""
        return folder_name(self.path)


@dataclass(frozen=True)
class Reconstruction(Output):
    """The result of reconstruct.py.

    Attributes:
        path: its folder.
        metrics: `metrics.json`.
        examples: the best, the median and the worst slices; none if an earlier version wrote it.
        code_counts: how often each code was used, int64 of shape (num_embeddings,), or empty.
    """

    path: Path
    metrics: dict[str, Any]
    examples: Sequence[ReconstructionRow]
    code_counts: np.ndarray

    @property
    def codecs(self) -> dict[str, dict[str, float]]:
        """Name of each codec -> its scores and rate."""
        titles = scores.CODEC_TITLES.items()
        return {title: self.metrics[key] for key, title in titles if key in self.metrics}


@dataclass(frozen=True)
class SampledSlice:
    """One sample: its pixels, uint8 of shape (rows, cols), and its nearest training slice."""

    label: str
    position: float
    image: np.ndarray
    nearest_id: str = ""
    nearest_ssim: float = float("nan")
    nearest_image: np.ndarray | None = None


@dataclass(frozen=True)
class Sampling(Output):
    """The result of sample.py: `metrics.json`, and at most 64 slices by rising position."""

    path: Path
    metrics: dict[str, Any]
    slices: Sequence[SampledSlice]

    @property
    def images(self) -> list[np.ndarray]:
        """The samples and their nearest slices."""
        pairs = [(sample.image, sample.nearest_image) for sample in self.slices]
        return [image for pair in pairs for image in pair if image is not None]

    @property
    def is_evaluated(self) -> bool:
        """Whether the samples were compared with real slices."""
        return all(self.metrics.get(name) is not None for name in COMPARISON)


@dataclass(frozen=True)
class Scoring(Output):
    """The result of score.py: `metrics.json`, and its figure, uint8 of shape (rows, cols, 3)."""

    path: Path
    metrics: dict[str, Any]
    figure: np.ndarray


@dataclass(frozen=True)
class Search:
    """The trials of a search.

    Attributes:
        path: its folder.
        objective: name of the objective, and its direction, "min" or "max".
        dimensions: the dimensions of the space.
        metrics: the metrics, of which `rate` and `quality` span the plane.
        rows: one per trial: `trial`, `status`, `score`, `reason`, the dimensions and the metrics.
        best: name of the chosen trial, that of the best finalist or else the one with the best
            score; empty without any.
        front: names of the trials on the Pareto front, by ascending rate.
        finalists: one per configuration that was trained in full, the best first: `trial` (its
            best one), `score` (the mean over seeds), `scores`, and the dimensions.
        conclusion: which finalist is the best and how sure that is; empty without any.
    """

    path: Path
    objective: tuple[str, str]
    dimensions: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    rate: str
    best: str = ""
    front: Sequence[str] = field(default=())
    quality: str = "val_ssim_foreground"
    finalists: Sequence[Mapping[str, Any]] = field(default=())
    conclusion: str = ""


def read_run(path: PathLike) -> RunRecord:
    """Read the files of a run, trained or half trained.

    Raises:
        InputError: if the folder is not a run, or a file of it is corrupt.
    """
    run = Run(path)
    config, metrics = run.open_config(), run.read_metrics()
    with reading(run.metrics_path, "metrics of a run", "Run the training command again."):
        check_fields(metrics, RUN, RUN)
        check_fields(metrics.get("floor_mean_image", {}), RUN_FLOOR, RUN_FLOOR)
        for split in metrics.get("splits", {}).values():
            check_fields(split, RUN_SPLIT, ("nats_per_code_by_position",))
    environment = run.read_environment()
    archive = environment.get("archive")
    # Not `Path.exists`, which raises where a folder of someone else is closed.
    if config["kind"] == "pixelcnn" and os.path.exists(
        Path(config["vqvae_run"]) / "environment.json"
    ):
        archive = Run(config["vqvae_run"]).read_environment().get("archive")
    counts = _count_slices(archive, config["archive_hash"])
    return RunRecord(run, config, environment, metrics, run.read_history(), archive, counts)


def _count_slices(archive, content_hash):
    """Count subjects and slices of each split; None if the archive was moved or changed."""
    if not archive or not os.path.isfile(Path(archive) / "archive.json"):
        return None
    opened = SliceArchive.open(archive)
    return opened.counts if opened.content_hash == content_hash else None


def _read_metrics(path, script, rules, optional=()):
    """Read the `metrics.json` that identifies the result of a script."""
    file = Path(path) / "metrics.json"
    if not file.is_file():
        raise InputError(f"{path} has no metrics.json. Give the --out folder of {script}.")
    return read_json(file, rules, optional, f"Give the --out folder of {script}, or run it again.")


def read_reconstruction(path: PathLike) -> Reconstruction:
    """Read the output folder of reconstruct.py.

    Raises:
        InputError: if it is not such a folder, or a file of it is corrupt.
    """
    path = Path(path)
    rules = RECONSTRUCTION | RECONSTRUCTION_RATES
    metrics = _read_metrics(path, "reconstruct.py", rules, RECONSTRUCTION_RATES)
    with reading(path / "metrics.json", "metrics of a reconstruction", "Run reconstruct.py again."):
        for name in ("floor_black", "floor_mean_image"):
            check_fields(metrics[name], SCORES)
        for name in scores.CODEC_TITLES:
            check_fields(metrics.get(name, {}), CODEC, () if name in metrics else CODEC)
    file = path / "examples.npz"
    examples = read_examples(file) if file.exists() else ([], np.zeros(0, int))
    return Reconstruction(path, metrics, *examples)


def read_sampling(path: PathLike) -> Sampling:
    """Read the output folder of sample.py.

    Raises:
        InputError: if it is not such a folder, or a file of it is corrupt.
    """
    path = Path(path)
    optional = dict.fromkeys(SAMPLE_SCORES, OPTIONAL_NUMBER)
    metrics = _read_metrics(path, "sample.py", SAMPLING | optional, optional)
    table = path / "nearest.csv"
    with reading(table, "table of nearest slices", "Run sample.py again."):
        rows = read_rows(table).values() if table.exists() else ()
        nearest = {row["sample"]: (row["slice_id"], float(row["ssim"])) for row in rows}
    files = sorted((path / "slices").glob("sample_*_position_*.png"))
    chosen = np.linspace(0, len(files) - 1, min(len(files), MAX_SHOWN)).round().astype(int)
    slices = [_read_sample(path, files[row], nearest) for row in chosen]
    sampling = Sampling(path, metrics, slices)
    if len(shapes := {image.shape for image in sampling.images}) > 1:
        raise CorruptFileError(f"{path} holds images of several sizes: {sorted(shapes)}.")
    return sampling


def read_scoring(path: PathLike) -> Scoring:
    """Read the output folder of score.py.

    Raises:
        InputError: if it is not such a folder, or a file of it is corrupt.
    """
    path = Path(path)
    metrics, figure = _read_metrics(path, "score.py", SCORING), path / "surprise.png"
    with reading(figure, "figure", "Run score.py again."):
        return Scoring(path, metrics, _read_pixels(figure, "RGB"))


def _read_sample(path, file, nearest):
    with reading(file, "sample", "Run sample.py again."):
        label = file.stem.split("_", 2)[2].replace("_", " ")  # without "sample" and its number
        sample = label, float(label.rpartition(" ")[2]), _read_pixels(file)
    if file.name not in nearest:
        return SampledSlice(*sample)
    other = path / "nearest" / file.name
    with reading(other, "nearest slice", "Run sample.py again."):
        return SampledSlice(*sample, *nearest[file.name], _read_pixels(other))


def _read_pixels(file, mode="L"):
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))
