"""Training of stage one: from a slice archive to a run folder."""

import dataclasses
from pathlib import Path

import keras
import numpy as np

from brainslices.archive import SliceArchive
from brainslices.batches import SliceBatches
from brainslices.config import TrainingConfig, from_dict
from brainslices.errors import InputError
from brainslices.metrics import mean_image
from brainslices.precision import resolve_precision
from brainslices.runs import FORMAT_VERSION, Run, atomic_path, environment, read_json, write_json
from brainslices.training import TrainingState, compile_model, fit
from vqvae.config import VQVAEConfig
from vqvae.model import VQVAE

__all__ = ["MONITOR", "build_model", "train"]

MONITOR = "val_ssim_foreground"
# Latents that k-means starts from: for each code, and at most.
KMEANS_LATENTS, MOST_KMEANS_LATENTS = 40, 2**17
STATISTICS_CHUNK = 256


def train(data: Path, path: Path, config: VQVAEConfig, training: TrainingConfig) -> dict:
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
    archive = SliceArchive.open(data)
    train_rows, validation_rows = archive.rows_of("train"), archive.rows_of("validate")
    _ = archive.images  # a damaged file is found before anything is written
    run = Run(path)
    asked = _describe(archive, config, training)
    _check_same(run, asked)
    with run.lock():
        _check_same(run, asked)  # it may have been begun while we looked
        policy, reason = _precision(run, training, max(config.channels))
        keras.mixed_precision.set_dtype_policy(policy)
        keras.utils.set_random_seed(training.seed)
        model = build_model(archive, train_rows, config, training.seed)
        batches = SliceBatches(
            archive, train_rows, training.batch_size, training.seed, training.mirror
        )
        validation = SliceBatches(archive, validation_rows, training.batch_size)
        compile_model(model, training, batches.steps_per_epoch)
        write_json(run.config_path, asked)
        facts = {"precision": policy, "precision_reason": reason, "seed": training.seed}
        facts = environment(archive_hash=archive.content_hash, **facts)
        write_json(run.environment_path, facts)
        with atomic_path(run.mean_image_path) as temporary:
            np.save(temporary, mean_image(archive))
        if config.kmeans_init and not run.state_path.exists():
            _start_codebook(model, batches)
        state = fit(model, batches, validation, run, training, MONITOR)
        metrics = _metrics(model, state)
        write_json(run.metrics_path, metrics)
    return metrics


def _precision(run, training, width):
    """Policy and reason; a run goes on in the policy it was begun in, whatever a probe says."""
    if training.precision == "auto" and run.state_path.exists():
        begun = read_json(run.environment_path)
        if "precision" in begun:
            return begun["precision"], begun["precision_reason"]
    return resolve_precision(training.precision, width)


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


def _start_codebook(model, batches):
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


def _describe(archive, config, training):
    return {
        "format_version": FORMAT_VERSION,
        "kind": "vqvae",
        "archive_hash": archive.content_hash,
        "model": dataclasses.asdict(config),
        "training": dataclasses.asdict(training),
    }


def _check_same(run, asked):
    """A run goes on only as what it was begun; more epochs may be asked of it.

    A cosine schedule is then stretched over all of them, and the learning rate rises once more.
    """
    if not run.state_path.exists():
        others = sorted(run.strangers())
        if others:
            raise InputError(
                f"Run folder {run.path} holds other things ({', '.join(others[:3])}) and "
                "no training to go on with. Give a new or empty folder as --run."
            )
        return
    begun = run.open_config("vqvae")
    if begun["archive_hash"] != asked["archive_hash"]:
        raise InputError(
            f"Run {run.path} was trained on another archive (content {begun['archive_hash'][:12]}, "
            f"this one has {asked['archive_hash'][:12]}). Give that --data, or a new --run."
        )
    changed = []
    for part, kind in (("model", VQVAEConfig), ("training", TrainingConfig)):
        before = dataclasses.asdict(from_dict(kind, begun[part], run.config_path))
        changed += [
            f"{key}={before[key]!r} (asked: {value!r})"
            for key, value in asked[part].items()
            if value != before[key] and not (key == "epochs" and value > before[key])
        ]
    if changed:
        raise InputError(
            f"Run {run.path} was begun with {'; '.join(changed)}. "
            "Ask for the same (or for more epochs), or give a new --run."
        )


def _metrics(model, state: TrainingState) -> dict:
    best = int(np.argmax(state.history[MONITOR]))
    scores = {
        key.removeprefix("val_"): values[best]
        for key, values in state.history.items()
        if key.startswith("val_")
    }
    return {
        "split": "validate",
        "epoch": best + 1,
        "epochs": state.epoch,
        **scores,
        "bits_per_pixel_raw": model.bits_per_pixel_raw,
        "train_codebook_usage": state.history["codebook_usage"][best],
        "seconds": state.seconds,
    }
