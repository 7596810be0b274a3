"""Training of stage one: from a slice archive to a run folder."""

import contextlib
import dataclasses
import math

import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.data.batches import SliceBatches
from brainslices.data.slices import open_slices
from brainslices.distributed.collectives import run_on_all, run_on_primary
from brainslices.errors import CorruptFileError, InputError
from brainslices.evaluation.image_metrics import mean_image, score_slices, summarize
from brainslices.runs.atomic import atomic_path
from brainslices.runs.run import Run
from brainslices.training.checkpoint import TrainingProgress
from brainslices.training.stage import Objective, Stage, run_training
from brainslices.types import PathLike
from vqvae.config import VQVAEConfig, VQVAETraining
from vqvae.model import VQVAE

__all__ = ["OBJECTIVE", "build_model", "train"]

OBJECTIVE = Objective("val_ssim_foreground", "max")
# Latents for the k-means initialisation: per code, and at most.
KMEANS_LATENTS_PER_CODE, MAX_KMEANS_LATENTS = 40, 2**17
STATISTICS_CHUNK = 256


def train(data: PathLike, run: PathLike, config: VQVAEConfig, training: VQVAETraining) -> dict:
    """Train a VQ-VAE on a slice archive, or resume the training.

    Args:
        data: the archive's folder.
        run: the run folder; created if missing.
        config: the model.
        training: the training's hyperparameters.

    Returns:
        The run's metrics: the best epoch's scores on the validation slices, the rate, and under
        `floor_mean_image` the scores of the mean training image on the same slices.

    Raises:
        InputError: if the archive or the run folder cannot be used; nothing is changed then.
        KeyboardInterrupt: interrupted by the user; a checkpoint was written.
    """
    run = Run(run)
    archive, train_rows, validation_rows = run_on_all(_open, data)

    def prepare(**sharding):
        model = build_model(archive, train_rows, config, training.seed)
        size, shuffled = training.batch_size, (training.seed, training.mirror)
        run_on_primary(_write_mean_image, run, archive)
        if config.kmeans_init and not run_on_primary(run.checkpoint_path.exists):
            _initialize_codebook(model, SliceBatches(archive, train_rows, size, *shuffled))
        batches = SliceBatches(archive, train_rows, size, *shuffled, **sharding)
        return model, batches, SliceBatches(archive, validation_rows, size, **sharding)

    provenance = {"archive_hash": archive.content_hash}
    stage = Stage(
        kind="vqvae",
        model=config,
        objective=OBJECTIVE,
        provenance=provenance,
        metadata={"archive": str(archive.path.resolve()), **provenance},
        sample_counts=(len(train_rows), len(validation_rows)),
        prepare=prepare,
        measure=lambda model, progress: {
            **_metrics(model, progress),
            "floor_mean_image": _mean_image_scores(run, data),
        },
    )
    return run_training(run, stage, training)


def _open(data):
    """Open an archive; return it with its training and its validation rows."""
    archive = SliceArchive.open(data)
    _ = archive.images  # a corrupt file fails here, before anything is written
    return archive, archive.indices("train"), archive.indices("validate")


def _write_mean_image(run, archive):
    """Write the mean training image, unless the file holds it already."""
    mean = mean_image(archive)
    if run.mean_image_path.exists():
        with contextlib.suppress(CorruptFileError):
            if np.array_equal(run.read_mean_image(mean.shape), mean):
                return
    with atomic_path(run.mean_image_path) as temporary:
        np.save(temporary, mean)


def build_model(archive: SliceArchive, rows: np.ndarray, config: VQVAEConfig, seed: int) -> VQVAE:
    """Build an untrained model for the images of an archive.

    Args:
        archive: the slices.
        rows: int array of shape (n,), the training slices, whose mean and standard deviation the
            model stores.
        config: the model.
        seed: initialises the codebook.

    Raises:
        InputError: if the training slices are constant.
    """
    mean, std = _statistics(archive, rows)
    crop = dataclasses.astuple(archive.crop)
    parameters = dataclasses.asdict(config)
    model = VQVAE(archive.image_shape, crop, mean=mean, std=std, seed=seed, **parameters)
    model.build((None, *archive.image_shape, 1))
    return model


def _statistics(archive, rows):
    """Mean and standard deviation of the cropped slices' intensities, in [0, 1]."""
    count, total, squares = 0, 0, 0  # of grey levels, exact
    for start in range(0, len(rows), STATISTICS_CHUNK):
        crops = archive.crop.cut(archive.images[rows[start : start + STATISTICS_CHUNK]])
        count += crops.size
        total += int(crops.sum(dtype="int64"))
        squares += int(np.square(crops, dtype="int64").sum())
    if count * squares == total**2:
        raise InputError(
            f"The training slices of {archive.path} must differ from a constant. Received: grey "
            f"level {total // count} at every pixel of the crop."
        )
    return total / count / 255, math.sqrt(count * squares - total**2) / count / 255


def _initialize_codebook(model, batches):
    """Initialise the codebook with k-means centres of the first batches' latents."""
    config, latents, count = model.config, [], 0
    needed = min(KMEANS_LATENTS_PER_CODE * config.num_embeddings, MAX_KMEANS_LATENTS)
    for step in range(len(batches)):
        if count >= needed:
            break
        batch = np.asarray(model.encode(batches[step][0]), "float32")
        latents.append(batch.reshape(-1, config.embedding_dim))
        count += len(latents[-1])
    if count >= config.num_embeddings:  # otherwise the codes stay random
        model.quantizer.initialize_codebook(np.concatenate(latents)[:needed])


def _mean_image_scores(run, data):
    """Score the mean training image on the validation slices."""
    slices = open_slices(data, "validate")
    mean = run.read_mean_image(slices[0].shape)
    images = np.broadcast_to(mean, (len(slices), *mean.shape))
    return summarize(score_slices(slices, images, "scoring the mean image"), {}, slices.subjects)


def _metrics(model: VQVAE, progress: TrainingProgress) -> dict:
    history, best = progress.history, OBJECTIVE.best_epoch(progress.history)
    scores = {
        key.removeprefix("val_"): values[best - 1]
        for key, values in history.items()
        if key.startswith("val_")
    }
    return {
        "split": "validate",
        "epoch": best,
        "epochs": progress.epoch,
        **scores,
        "bits_per_pixel_raw": model.bits_per_pixel_raw,
        "train_codebook_usage": history["codebook_usage"][best - 1],
        "seconds": progress.seconds,
    }
