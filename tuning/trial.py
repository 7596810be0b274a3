"""One trial of a search: a short training of the VQ-VAE, optionally a prior, and its metrics."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pixelcnn.training
import vqvae.training
from brainslices.data.archive import SliceArchive
from brainslices.data.code_grids import CodeGrids, entropy
from brainslices.distributed.devices import count_devices
from brainslices.errors import InputError
from brainslices.runs.provenance import file_hash
from brainslices.training.precision import resolve_precision
from brainslices.training.stage import check_batch_divides
from brainslices.types import PathLike
from pixelcnn.config import DEFAULT
from pixelcnn.model import PixelCNN
from tuning.config import FINAL_SEED, METRICS, RATES, SearchConfig
from tuning.spaces import SPACES, build_config, declare, load_space
from vqvae.config import VQVAEConfig, VQVAETraining
from vqvae.encode import load_or_encode

__all__ = ["describe_search", "rate_distortion", "run_trial", "trial_config", "trial_folder"]

# The prior that measures the rate of the codes: small, and the same in all trials.
PRIOR = dataclasses.replace(DEFAULT.model, channels=48, layers=5, attention_layers=0)
PRIOR_TRAINING = dataclasses.replace(DEFAULT.training, warmup_steps=50, average=0.98)
# Bits of a code under a prior after long training, relative to the entropy of the codes of a short
# trial: 0.57 to 0.70 in sixteen configurations on OASIS-1. A prior trained in the trial has 0.40 to
# 0.93: codes of a hardly trained encoder are easy to predict, but it is hardly trained itself.
PRIOR_SHARE = 0.65
# The largest share of the steps of a trial that its warm-up takes: trials are short.
MAX_WARMUP = 0.1


def trial_config(
    config: SearchConfig, values: dict[str, Any] | None = None
) -> tuple[VQVAEConfig, VQVAETraining]:
    """Build the configuration of some values of the space, as for a full training.

    Args:
        config: the search.
        values: dimension -> value; missing ones are the defaults.

    Raises:
        InputError: if the space makes no valid configuration of them.
    """
    space = load_space(config.space)
    hp = declare(space, config.fix)
    names = {dimension.name for dimension in hp.space}
    hp.values.update({name: value for name, value in (values or {}).items() if name in names})
    model_and_training = build_config(space, hp)
    conditional = {dimension.name for dimension in hp.space} - names
    if conditional:
        raise InputError(
            f"The space {space.__name__} must declare every dimension in every call. Received: "
            f"{', '.join(sorted(conditional))} only with {hp.values}."
        )
    return model_and_training


def trial_folder(out: PathLike, config: SearchConfig, values: dict[str, Any]) -> Path:
    """Return the folder of a configuration's runs; trials of the same one share its trainings.

    A final training has a folder of its own in it.
    """
    model, training = (dataclasses.asdict(part) for part in trial_config(config, values))
    del training["epochs"]
    text = json.dumps([model, training], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = Path(out) / "runs" / f"{model['num_embeddings']:04d}-codes-{digest}"
    return folder / f"final-{values[FINAL_SEED]}" if FINAL_SEED in values else folder


def run_trial(
    data: PathLike, out: PathLike, config: SearchConfig, values: dict[str, Any]
) -> dict[str, float]:
    """Train or resume the VQ-VAE of some values and, with `prior_epochs`, a small prior.

    Args:
        data: archive folder.
        out: search folder.
        config: the search.
        values: values of the space; with hyperband also the epochs of this trial, and of a final
            training `FINAL_SEED`.

    Returns:
        `tuning.config.METRICS` -> value.

    Raises:
        InputError: if a training fails.
    """
    from filelock import FileLock

    data, folder = Path(data), trial_folder(out, config, values)
    folder.mkdir(parents=True, exist_ok=True)
    config, (model, training) = _own_length(config, values), trial_config(config, values)
    samples = len(SliceArchive.open(data).indices("train"))
    epochs = values.get("tuner/epochs", config.epochs)
    # Hyperband continues trials of one epoch: all lengths have the warm-up of these.
    training = _shorten(training, config, 1 if "tuner/epochs" in values else epochs, samples)
    training = dataclasses.replace(training, epochs=epochs)
    with FileLock(folder / ".lock"):  # another worker may run the same configuration
        vqvae_metrics = vqvae.training.train(data, folder / "vqvae", model, training)
        # A trial's prior is too short to overfit; a final one has the full training's variants.
        has_rate = config.objective == "val_rate_distortion"
        has_prior = has_rate and config.prior_epochs > 0
        variants = DEFAULT.training.variants if FINAL_SEED in values and has_prior else 0
        grids = load_or_encode(folder / "vqvae", data, variants)
        metrics = _vqvae_metrics(vqvae_metrics, grids)
        if has_prior:
            prior_metrics = _train_prior(folder, grids, config)
            seconds = metrics["seconds"] + prior_metrics["seconds"]
            metrics |= {**prior_metrics, "seconds": seconds}
        if has_rate:
            metrics["val_rate_distortion"] = _score(metrics, config)
    if not math.isfinite(metrics[config.objective]):
        raise InputError(f"{config.objective} is {metrics[config.objective]}.")
    return {name: float(metrics[name]) for name in METRICS if name in metrics}


def _own_length(config, values):
    """The search's configuration with the epochs and the seed of this trial or final training."""
    if FINAL_SEED not in values:
        return config
    return dataclasses.replace(
        config,
        epochs=config.final_epochs,
        prior_epochs=config.final_prior_epochs,
        seed=config.seed + values[FINAL_SEED],
    )


def rate_distortion(ssim_foreground: float, bits_per_pixel: float, rate_weight: float) -> float:
    """Return the score of a search: 1 - ssim_foreground + rate_weight * bits_per_pixel."""
    return 1 - ssim_foreground + rate_weight * bits_per_pixel


def _score(metrics, config):
    rate = next(metrics[name] for name in RATES if name in metrics)
    return rate_distortion(metrics["val_ssim_foreground"], rate, config.rate_weight)


def _shorten(training, config, epochs, samples):
    """A preset's training with the length, the seed and the precision of a trial."""
    steps = epochs * max(1, samples // training.batch_size)
    warmup_steps = min(training.warmup_steps, int(MAX_WARMUP * steps))
    options = {"seed": config.seed, "precision": config.precision}
    return dataclasses.replace(training, epochs=epochs, warmup_steps=warmup_steps, **options)


def _vqvae_metrics(metrics: dict[str, float], grids: CodeGrids) -> dict[str, float]:
    codes, pixels = grids.splits["train"].codes, math.prod(grids.image_shape)
    nats = entropy(codes, grids.num_embeddings) * math.prod(grids.grid_shape)
    return {
        "val_ssim_foreground": metrics["ssim_foreground"],
        "val_ssim": metrics["ssim"],
        "bits_per_pixel_estimated": PRIOR_SHARE * nats / math.log(2) / pixels,
        "bits_per_pixel_order_0": nats / math.log(2) / pixels,
        "bits_per_pixel_raw": metrics["bits_per_pixel_raw"],
        "perplexity": metrics["perplexity"],
        "codebook_usage": metrics["train_codebook_usage"],
        "epochs": metrics["epochs"],
        "seconds": metrics["seconds"],
    }


def _train_prior(folder, grids, config):
    name = f"prior-{grids.vqvae_hash[:8]}"
    for path in folder.glob("prior-*"):
        if path.name != name:  # of the codes of an earlier, shorter training
            shutil.rmtree(path)
    samples = len(grids.splits["train"].codes)
    training = _shorten(PRIOR_TRAINING, config, config.prior_epochs, samples)
    training = dataclasses.replace(training, variants=len(grids.variants))
    metrics = pixelcnn.training.train(grids, folder / name, PRIOR, training)
    return {name: metrics[name] for name in ("bits_per_pixel_prior", "nats_per_code", "seconds")}


def describe_search(
    data: PathLike, config: SearchConfig, devices: int | None = None
) -> dict[str, Any]:
    """Build the models of the space's defaults once, so that mistakes show before the first trial.

    Args:
        data: archive folder.
        config: the search.
        devices: number of devices that share each batch; by default all visible ones.

    Returns:
        What identifies a search (archive, space, configuration of its defaults), and the precision
        that `auto` resolves to here; of JSON types.

    Raises:
        InputError: if the archive, the space or a fixed value is invalid.
    """
    archive = SliceArchive.open(Path(data))
    for split in ("train", "validate"):
        archive.indices(split)
    hp = declare(load_space(config.space), config.fix)
    model, training = trial_config(config)
    built = vqvae.training.build_model(archive, archive.indices("train"), model, config.seed)
    PixelCNN(built.code_grid_shape, model.num_embeddings, **dataclasses.asdict(PRIOR)).build()
    for batch_size in (training.batch_size, PRIOR_TRAINING.batch_size):
        check_batch_divides(batch_size, devices or count_devices())
    precision, _ = resolve_precision(config.precision, max(model.channels))
    description = {
        "archive_hash": archive.content_hash,
        "precision": precision,
        "fix": [f"{name}={hp.values[name]}" for name in sorted(config.fixed_names)],
        # The dimensions alone do not show what a file makes of their values.
        "space_hash": None if config.space in SPACES else file_hash(Path(config.space)),
        "space": [dimension["config"] for dimension in hp.get_config()["space"]],
        "defaults": [dataclasses.asdict(model), dataclasses.asdict(training)],
    }
    # Through JSON, to be compared with what search.json holds: no tuples.
    return json.loads(json.dumps(description))
