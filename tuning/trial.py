"""One trial of a search: both stages trained in short, and what came of them."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

from keras_tuner import HyperParameters

import pixelcnn.training
import vqvae.training
from brainslices.data.archive import SliceArchive
from brainslices.data.code_grids import CodeGrids, entropy
from brainslices.distributed.devices import device_count
from brainslices.errors import InputError
from brainslices.runs.provenance import file_hash
from brainslices.training.precision import resolve_precision
from brainslices.training.stage import check_batch_divides
from pixelcnn.config import DEFAULT
from pixelcnn.model import PixelCNN
from tuning.config import METRICS, SearchConfig
from tuning.spaces import SPACES, apply, declare, load_space
from vqvae.config import VQVAEConfig, VQVAETraining
from vqvae.encode import code_grids

__all__ = ["check", "configuration", "folder_of", "run_trial"]

# The prior that tells what codes cost: small, and the same for all trials.
PRIOR = dataclasses.replace(DEFAULT.model, channels=48, layers=5, attention_layers=0)
PRIOR_TRAINING = dataclasses.replace(DEFAULT.training, variants=0, warmup_steps=50, average=0.98)


def configuration(
    config: SearchConfig, values: dict | None = None
) -> tuple[VQVAEConfig, VQVAETraining]:
    """The configuration of some values of the space, as it would be trained in full.

    Args:
        config: the search.
        values: name -> value; those that are missing, or all, are the defaults.

    Raises:
        InputError: if the space makes no valid one of them.
    """
    space = load_space(config.space)
    hp: HyperParameters = declare(space, config.fix)
    names = {dimension.name for dimension in hp.space}
    hp.values.update({name: each for name, each in (values or {}).items() if name in names})
    found = apply(space, hp)
    late = {dimension.name for dimension in hp.space} - names
    if late:
        raise InputError(
            f"The space {space.__name__} asks for {', '.join(sorted(late))} only where it has "
            f"{hp.values}: it must ask for every dimension in every call."
        )
    return found


def folder_of(out: Path, config: SearchConfig, values: dict) -> Path:
    """Folder of a configuration's runs; two trials of the same share it, and its trainings."""
    model, training = (dataclasses.asdict(each) for each in configuration(config, values))
    del training["epochs"]
    told = json.dumps([model, training], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return Path(out) / "runs" / f"{model['num_embeddings']:04d}-codes-{digest}"


def run_trial(data: Path, out: Path, config: SearchConfig, values: dict) -> dict[str, float]:
    """Train the VQ-VAE of some values and, if its rate is asked for, a small prior on its codes.

    What was trained before is gone on with.

    Args:
        data: the archive's folder.
        out: the search's folder.
        config: the search.
        values: of the space; with hyperband also the epochs of this trial.

    Returns:
        `tuning.config.METRICS`.

    Raises:
        InputError: if a training fails.
    """
    from filelock import FileLock

    folder = folder_of(out, config, values)
    folder.mkdir(parents=True, exist_ok=True)
    model, training = configuration(config, values)
    epochs = values.get("tuner/epochs", config.epochs)
    with FileLock(folder / ".lock"):  # another worker may have come to the same configuration
        short = _shortened(training, epochs, config)
        scores = vqvae.training.train(data, folder / "vqvae", model, short)
        grids = code_grids(folder / "vqvae", data, 0)
        found = _scores(scores, grids, config)
        if config.objective == "val_rate_distortion":
            costs = _rate(folder, grids, config)
            found |= {**costs, "seconds": found["seconds"] + costs["seconds"]}
            distortion = 1 - found["val_ssim_foreground"]
            cost = config.rate_weight * found["bits_per_pixel_prior"]
            found["val_rate_distortion"] = distortion + cost
    if not math.isfinite(found[config.objective]):
        raise InputError(f"{config.objective} is {found[config.objective]}.")
    return {name: float(found[name]) for name in METRICS if name in found}


def _shortened(training, epochs, config):
    """A training of fewer epochs; its warm-up keeps its share of the search's longest."""
    warmup = round(training.warmup_steps * min(1, config.epochs / training.epochs))
    return dataclasses.replace(training, epochs=epochs, warmup_steps=warmup, **_shared(config))


def _shared(config):
    return {"seed": config.seed, "precision": config.precision}


def _scores(scores, grids: CodeGrids, config):
    codes, pixels = grids.splits["train"].codes, math.prod(grids.image_shape)
    nats = entropy(codes, grids.num_embeddings) * math.prod(grids.grid_shape)
    return {
        "val_ssim_foreground": scores["ssim_foreground"],
        "val_ssim": scores["ssim"],
        "bits_per_pixel_order_0": nats / math.log(2) / pixels,
        "bits_per_pixel_raw": scores["bits_per_pixel_raw"],
        "perplexity": scores["perplexity"],
        "codebook_usage": scores["train_codebook_usage"],
        "epochs": scores["epochs"],
        "seconds": scores["seconds"],
    }


def _rate(folder, grids, config):
    """What the codes cost on validation; a prior of other codes is in the way, and goes."""
    name = f"prior-{grids.vqvae_hash[:8]}"
    for other in folder.glob("prior-*"):
        if other.name != name:
            shutil.rmtree(other)
    training = dataclasses.replace(PRIOR_TRAINING, epochs=config.prior_epochs, **_shared(config))
    costs = pixelcnn.training.train(grids, folder / name, PRIOR, training)
    return {name: costs[name] for name in ("bits_per_pixel_prior", "nats_per_code", "seconds")}


def check(data: Path, config: SearchConfig, devices: int | None = None) -> dict:
    """Build what a trial would train, once, so that no mistake waits for the first trial.

    Args:
        data: the archive's folder.
        config: the search.
        devices: how many share each batch of a trial; by default all that this process sees.

    Returns:
        What makes two searches the same (archive, space, the defaults' configuration), and the
        precision that `auto` comes to here.

    Raises:
        InputError: if the archive, the space or a fixed value cannot be used.
    """
    archive = SliceArchive.open(data)
    for split in ("train", "validate"):
        archive.indices(split)
    hp = declare(load_space(config.space), config.fix)
    model, training = configuration(config)
    built = vqvae.training.build_model(archive, archive.indices("train")[:1], model, config.seed)
    PixelCNN(built.code_grid_shape, model.num_embeddings, **dataclasses.asdict(PRIOR)).build()
    for batch_size in (training.batch_size, PRIOR_TRAINING.batch_size):
        check_batch_divides(batch_size, devices or device_count())
    defaults = [dataclasses.asdict(each) for each in (model, training)]
    dimensions = [each["config"] for each in hp.get_config()["space"]]
    precision, _ = resolve_precision(config.precision, max(model.channels))
    told = {"archive_hash": archive.content_hash, "precision": precision}
    # What a file maps values to, not only which there are.
    names = sorted(words.partition("=")[0] for words in config.fix)
    told["fix"] = [f"{name}={hp.values[name]}" for name in names]
    told["space_hash"] = None if config.space in SPACES else file_hash(config.space)
    # As JSON gives it back, to be compared with what it gave.
    return json.loads(json.dumps({**told, "space": dimensions, "defaults": defaults}))
