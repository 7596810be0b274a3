"""Training of stage one: from a slice archive to a run folder."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.data.batches import SliceBatches
from brainslices.distributed.collectives import run_on_all, run_on_primary
from brainslices.errors import CORRUPT_FILE_ERRORS
from brainslices.evaluation.image_metrics import mean_image
from brainslices.runs.atomic import atomic_path
from brainslices.runs.run import Run
from brainslices.training.callbacks import best_epoch
from brainslices.training.checkpoint import TrainingProgress
from brainslices.training.loop import run_config, run_training
from vqvae.config import VQVAEConfig, VQVAETraining
from vqvae.model import VQVAE

__all__ = ["GOAL", "build_model", "train"]

GOAL = ("val_ssim_foreground", "max")
KINDS = {"model": VQVAEConfig, "training": VQVAETraining}
# Latents that k-means starts from: for each code, and at most.
KMEANS_LATENTS, MOST_KMEANS_LATENTS = 40, 2**17
STATISTICS_CHUNK = 256


def train(data: Path, path: Path, config: VQVAEConfig, training: VQVAETraining) -> dict:
    """Train a VQ-VAE on a slice archive, or go on with a training that was stopped.

    Args:
        data: the archive's folder.
        path: the run folder, made if missing.
        config: the model.
        training: how it is trained.

    Returns:
        The run's metrics: the best epoch's scores on the validation slices, and the rate.

    Raises:
        InputError: if the archive or the run folder cannot be used; nothing is changed then.
        KeyboardInterrupt: stopped by the user, the state saved.
    """
    archive, train_rows, validation_rows = run_on_all(_open, data)
    run = Run(path)

    def prepare(devices):
        model = build_model(archive, train_rows, config, training.seed)
        size, seed, mirror = training.batch_size, training.seed, training.mirror
        run_on_primary(_write_mean_image, run, archive)
        if config.kmeans_init and not run_on_primary(run.checkpoint_path.exists):
            _initialize_codebook(model, SliceBatches(archive, train_rows, size, seed, mirror))
        batches = SliceBatches(archive, train_rows, size, seed, mirror, devices=devices)
        return model, batches, SliceBatches(archive, validation_rows, size, devices=devices)

    asked = run_config("vqvae", config, training, archive_hash=archive.content_hash)
    facts = {"archive": str(Path(data).resolve()), "archive_hash": archive.content_hash}
    counts = len(train_rows), len(validation_rows)
    return run_training(run, asked, KINDS, GOAL, training, facts, counts, prepare, _metrics)


def _open(data):
    """An archive, and its rows to train and to validate on."""
    archive = SliceArchive.open(data)
    _ = archive.images  # a damaged file is found before anything is written
    return archive, archive.indices("train"), archive.indices("validate")


def _write_mean_image(run, archive):
    """The mean training image; a damaged one, or one of another archive, is written anew."""
    mean = mean_image(archive)
    with contextlib.suppress(*CORRUPT_FILE_ERRORS):
        if np.array_equal(np.load(run.mean_image_path), mean):
            return
    with atomic_path(run.mean_image_path) as temporary:
        np.save(temporary, mean)


def build_model(archive: SliceArchive, rows: np.ndarray, config: VQVAEConfig, seed: int) -> VQVAE:
    """An untrained model for the pictures of an archive.

    Args:
        archive: the slices.
        rows: int array, the training slices, whose statistics the model holds.
        config: the model.
        seed: for the codebook.
    """
    mean, std = _statistics(archive, rows)
    model = VQVAE(
        archive.image_shape,
        dataclasses.astuple(archive.crop),
        mean=mean,
        std=std,
        seed=seed,
        **dataclasses.asdict(config),
    )
    model.build((None, *archive.image_shape, 1))
    return model


def _statistics(archive, rows):
    """Mean and standard deviation of the cropped slices' intensities, in [0, 1]."""
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(rows), STATISTICS_CHUNK):
        crops = archive.crop.cut(archive.images[rows[start : start + STATISTICS_CHUNK]])
        crops = crops.astype("float64") / 255
        count += crops.size
        total += crops.sum()
        squares += np.square(crops).sum()
    mean = total / count
    return float(mean), float(np.sqrt(squares / count - mean**2))


def _initialize_codebook(model, batches):
    """k-means centres of the first batches' latents."""
    wanted = min(KMEANS_LATENTS * model.config.num_embeddings, MOST_KMEANS_LATENTS)
    latents, found = [], 0
    for step in range(len(batches)):
        if found >= wanted:
            break
        batch = np.asarray(model.encode(batches[step][0]), "float32")
        latents.append(batch.reshape(-1, model.config.embedding_dim))
        found += len(latents[-1])
    latents = np.concatenate(latents)
    if len(latents) >= model.config.num_embeddings:
        model.quantizer.initialize_codebook(latents[:wanted])


def _metrics(model, state: TrainingProgress) -> dict:
    best = best_epoch(state, *GOAL)
    scores = {
        key.removeprefix("val_"): values[best - 1]
        for key, values in state.history.items()
        if key.startswith("val_")
    }
    return {
        "split": "validate",
        "epoch": best,
        "epochs": state.epoch,
        **scores,
        "bits_per_pixel_raw": model.bits_per_pixel_raw,
        "train_codebook_usage": state.history["codebook_usage"][best - 1],
        "seconds": state.seconds,
    }
