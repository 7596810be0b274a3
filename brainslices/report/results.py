"""A row of figures for each trained model, its baselines and its samples."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainslices.errors import InputError
from brainslices.evaluation.reports import BASELINES
from brainslices.evaluation.scores import SCORES
from brainslices.report.collect import (
    SAMPLE_SCORES,
    Reconstruction,
    RunRecord,
    is_of_training_archive,
    read_reconstruction,
    read_run,
    read_sampling,
)
from brainslices.report.names import check_different_names
from brainslices.runs.json_files import write_json
from brainslices.tables import format_interval, format_table
from brainslices.types import PathLike

__all__ = ["collect_results", "results_table", "write_results"]

INTERVALS = [f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")]
COUNTS = ("subjects", "slices", "codebook_usage")


def collect_results(folders: Sequence[PathLike]) -> list[dict[str, Any]]:
    """Return one row per model, then the floors and codecs on the slices of the first.

    Args:
        folders: folders with `vqvae` (a run) and `reconstruction` (of reconstruct.py), and
            optionally `prior` (a run) and `samples` (of sample.py --evaluate). The name of a folder
            is the name of its model.

    Raises:
        InputError: if there is no folder, one lacks one of the first two, one was made with another
            model, or a file is corrupt.
    """
    if not folders:
        raise InputError("`folders` must name at least one folder. Received: none.")
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not (path / "vqvae").is_dir() or not (path / "reconstruction").is_dir():
            raise InputError(
                "`folders` must hold vqvae/ (a run) and reconstruction/ (the --out folder of "
                "reconstruct.py), and may hold prior/ and samples/, as reproduce_oasis.sh makes "
                f"them. Received: {path}."
            )
    check_different_names("folders", [(path.name, path) for path in paths])
    read = [read_reconstruction(path / "reconstruction") for path in paths]
    rows = [_model_row(*pair) for pair in zip(paths, read, strict=True)]
    return [*rows, *_baseline_rows(read[0])]


def _model_row(folder: Path, reconstruction: Reconstruction) -> dict[str, Any]:
    vqvae, metrics = read_run(folder / "vqvae"), reconstruction.metrics
    _check_made_with(reconstruction.path, metrics.get("model_hash"), vqvae)
    row = {
        "name": folder.name,
        "command": vqvae.command,
        "split": metrics["split"],
        **_select(metrics, [*INTERVALS, *COUNTS, "bits_per_pixel_raw", "sweeps", "rate_weight"]),
        "minutes": _minutes(vqvae),
        "machine": _select(vqvae.environment, ["processor", "cores", "devices", "precision"]),
    }
    if (folder / "prior").is_dir():
        row |= _prior_row(folder, vqvae, metrics)
    return row


def _prior_row(folder: Path, vqvae: RunRecord, reconstruction: Mapping[str, Any]) -> dict[str, Any]:
    prior = read_run(folder / "prior")
    _check_made_with(prior.run.path, prior.config.get("vqvae_hash"), vqvae)
    row = {"prior_command": prior.command, "prior_minutes": _minutes(prior)}
    rates = prior.metrics.get("splits", {}).get(reconstruction["split"], {})
    # Measured on the training archive, of the nearest codes.
    if reconstruction.get("sweeps") or not is_of_training_archive(reconstruction):
        rates = {}
    if "prior_hash" in reconstruction:
        _check_made_with(folder / "reconstruction", reconstruction["prior_hash"], prior)
        rates = reconstruction
    row |= _select(rates, ["nats_per_code", "bits_per_pixel_prior"])
    if (folder / "samples").is_dir():
        sampling = read_sampling(folder / "samples")
        _check_made_with(sampling.path, sampling.metrics.get("prior_hash"), prior)
        row |= _select(sampling.metrics, ["samples", "temperature", "seed", *SAMPLE_SCORES])
    return row


def _check_made_with(path: Path, model_hash: str | None, run: RunRecord) -> None:
    if model_hash != run.model_hash:
        raise InputError(
            f"{path} was not made with the present model of {run.run.path}: run it again."
        )


def _baseline_rows(reconstruction: Reconstruction) -> Iterator[dict[str, Any]]:
    for name, key in BASELINES.items():
        if scores := reconstruction.metrics.get(key):
            yield {"name": name, **_select(scores, [*INTERVALS, "bits_per_pixel"])}


def _select(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: metrics[name] for name in names if name in metrics}


def _minutes(run: RunRecord) -> float | None:
    """Minutes of training; None before its end."""
    seconds = run.metrics.get("seconds")
    return None if seconds is None else round(seconds / 60, 1)


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of `collect_results` for the terminal."""
    header = ("", "ssim", "ssim_foreground", "bits per pixel", "under the prior", "Frechet", "real")
    lines = [header]
    for row in rows:
        rates = [row.get("bits_per_pixel_raw", row.get("bits_per_pixel"))]
        rates += [row.get("bits_per_pixel_prior")]
        numbers = [*rates, *(row.get(f"frechet_distance{end}") for end in ("", "_real"))]
        cells = [None if number is None else f"{number:.4f}" for number in numbers]
        scores = [format_interval(row, name, 4) for name in ("ssim", "ssim_foreground")]
        lines.append((row["name"], *scores, *cells))
    return format_table(lines)


def write_results(path: PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of `collect_results` as a JSON file."""
    write_json(Path(path), {"results": list(rows)})
