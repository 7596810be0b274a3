"""Reconstruction of unseen slices by a trained VQ-VAE: scores, floors, figure and images."""

import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from brainslices.compilation import compiled
from brainslices.data.batches import padded_batches
from brainslices.data.code_grids import entropy
from brainslices.data.crop import CropBox
from brainslices.data.images import to_uint8
from brainslices.data.slices import Slices
from brainslices.errors import InputError
from brainslices.evaluation.codecs import codec_scores
from brainslices.evaluation.image_metrics import (
    SCORES,
    floor_scores,
    score_slices,
    similarity_map,
    summarize,
    with_interval,
)
from brainslices.evaluation.reports import write_slice_scores
from brainslices.progress import bar
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.runs.loading import with_policy
from brainslices.runs.run import Run
from brainslices.types import PathLike
from brainslices.visualization.examples import write_examples
from brainslices.visualization.figures import (
    ReconstructionRow,
    pick_extremes,
    reconstruction_figure,
)
from vqvae.code_search import CodeSearch
from vqvae.config import Encoding
from vqvae.model import VQVAE

__all__ = ["reconstruct"]

FILES = (
    "metrics.json",
    "slices.csv",
    "reconstruction.png",
    "examples.npz",
    "pictures",
    "report.html",
)


def reconstruct(
    run: PathLike,
    slices: Slices,
    out: PathLike,
    *,
    batch_size: int = 32,
    pictures: bool = False,
    codecs: bool = False,
    encoding: Encoding | None = None,
) -> dict:
    """Reconstruct slices and score how similar they are to their originals.

    Args:
        run: run folder of a trained VQ-VAE.
        slices: the slices, as `open_slices` returns them.
        out: folder to write or replace, completely or not at all: `metrics.json`, `slices.csv` (a
            row per slice), `reconstruction.png`, `examples.npz` and optionally `pictures/`.
        batch_size: number of slices reconstructed at a time.
        pictures: write the reconstructions as 8-bit grey PNGs too.
        codecs: code the same slices with the codecs of `codec_scores` too.
        encoding: how the slices are encoded; None for the nearest codes.

    Returns:
        The contents of `metrics.json`.

    Raises:
        InputError: if the run, the data, the output folder or the entropy model cannot be used.
    """
    run, out = Run(run), Path(out).resolve()
    check_output_dir(out, FILES, "reconstruction")
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}.")
    model, encoding = VQVAE.from_run(run), encoding or Encoding()
    _check_entropy_model(encoding.entropy_model, model, len(slices))
    slices.check_shape(model.image_shape, run.path)
    with atomic_folder(out) as folder:
        images, encode = folder / "pictures" if pictures else None, _encoder(model, encoding)
        coded = _reconstruct_and_score(encode, slices, batch_size, images)
        metrics = _write_reconstruction(folder, run, model, slices, *coded)
        metrics |= _encoding_metadata(encoding)
        if codecs:
            rate = metrics.get("bits_per_pixel_prior", model.bits_per_pixel_raw)
            metrics |= codec_scores(slices, slices.subjects, rate)
        write_json(folder / "metrics.json", metrics)
        return metrics


def _check_entropy_model(entropy_model, model, count):
    """Refuse an entropy model of other codes or other slices."""
    if entropy_model is None:
        return
    expected, received = model.file_hash, entropy_model.metadata["vqvae_hash"]
    if received != expected:
        raise InputError(
            f"`entropy_model` must model the codes of this VQ-VAE ({expected[:12]}). Received: a "
            f"model of those of {received[:12]}. Give a prior that was trained on this run."
        )
    if len(entropy_model.position) != count:
        raise InputError(
            f"`entropy_model` must be of the {count} slices to encode. Received: one of "
            f"{len(entropy_model.position)} slices."
        )


def _write_reconstruction(folder, run, model, slices, codes, nats, scores):
    """Write all files but `metrics.json`, whose contents are returned."""
    training_mean = run.read_mean_image(model.image_shape)
    floors = floor_scores(slices, training_mean)
    write_slice_scores(folder / "slices.csv", slices.records, scores, floors)
    figure_rows = list(_figure_rows(model, slices, codes, scores))
    reconstruction_figure(folder / "reconstruction.png", figure_rows)
    counts = np.bincount(codes.ravel(), minlength=model.config.num_embeddings)
    write_examples(folder / "examples.npz", figure_rows, counts)
    metrics = summarize(scores, floors, slices.subjects)
    metrics["bits_per_pixel_raw"] = model.bits_per_pixel_raw
    if nats is not None:
        metrics |= _rates(nats, slices.subjects, model.image_shape)
    metrics["codebook_usage"] = float(np.mean(counts > 0))
    metrics["perplexity"] = math.exp(entropy(codes, model.config.num_embeddings))
    return metrics | _metadata(slices, model, run)


def _rates(nats, subjects, image_shape):
    """Nats per code of the slices and their bits per pixel, with intervals by subject."""
    bits = nats.sum(axis=(1, 2), dtype="float64") / math.log(2)
    return {
        **with_interval("nats_per_code", nats.mean(axis=(1, 2)), subjects),
        **with_interval("bits_per_pixel_prior", bits / math.prod(image_shape), subjects),
    }


def _encoding_metadata(encoding):
    """Return how the codes were chosen; nothing for the nearest codes."""
    metadata = {}
    if encoding.sweeps:
        metadata |= {"sweeps": encoding.sweeps, "rate_weight": encoding.rate_weight}
    if encoding.entropy_model:
        metadata["prior_hash"] = encoding.entropy_model.metadata["prior_hash"]
    return metadata


def _metadata(slices, model, run):
    """What the scores depend on: the data, the model and the data that it was trained on."""
    return {
        "split": slices.split,
        "archive_hash": slices.archive_hash,
        "training_archive_hash": run.open_config("vqvae")["archive_hash"],
        "model_hash": model.file_hash,
        "num_embeddings": model.config.num_embeddings,
    }


def _reconstruct_and_score(
    encode: Callable,
    slices: Slices,
    batch_size: int,
    image_folder: Path | None,
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Encode and decode all slices, one batch in memory at a time.

    Returns:
        Codes, int32 of shape (slices, r, c); their nats, float32 of that shape, or None without an
        entropy model; and the scores of `score_slices`.
    """
    codes, nats, scores = [], [], []
    with bar(len(slices), "reconstructing", "slices") as progress:
        for rows, size in padded_batches(len(slices), min(batch_size, len(slices))):
            originals = np.stack([slices[row] for row in rows])
            batch_codes, batch_nats, images = encode(originals, rows)
            images = np.clip(images[:size, ..., 0], 0, 1)
            codes.append(batch_codes[:size])
            if batch_nats is not None:
                nats.append(batch_nats[:size])
            scores.append(score_slices(originals[:size], images))
            if image_folder:
                for row, image in zip(rows[:size], images, strict=True):
                    _write_image(image_folder, slices.records[row].slice_id, image)
            progress.update(size)
    all_scores = {name: np.concatenate([part[name] for part in scores]) for name in SCORES}
    if np.isnan(all_scores["ssim_foreground"]).all():
        raise InputError(f"All images of {slices.path} are black: there is nothing to score.")
    return np.concatenate(codes), np.concatenate(nats) if nats else None, all_scores


def _encoder(model, encoding):
    """Return a function from images and their rows to codes, their nats or None, and images."""
    search = CodeSearch(model, encoding)
    # In float32, as the code grids of a prior: half-precision codes depend on the batch size.
    exact = with_policy(model, "float32")
    encode_exactly, decode = compiled(exact.encode, exact), compiled(model.decode_codes, model)

    def encode(originals, rows):
        images = originals[..., np.newaxis]
        codes, nats = search(images, encode_exactly(images), rows)
        return codes, nats, np.asarray(decode(codes))

    return encode


def _write_image(folder: Path, slice_id: str, image: np.ndarray) -> None:
    # An id is a path below the source; a subject table may hold ids that lead out of it.
    parts = [part for part in PurePosixPath(slice_id).parts if part not in ("/", "..")]
    path = folder.joinpath(*parts[:-1], f"{parts[-1]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(image)).save(path)


def _figure_rows(model, slices, codes, scores):
    """The best, the median and the worst slices, cut to what the codes cover."""
    picked = pick_extremes(scores["ssim_foreground"])
    decoded = np.asarray(model.decode_codes(codes[[row for _, row in picked]]))[..., 0]
    for (label, row), image in zip(picked, decoded, strict=True):
        images = np.stack([slices[row], image, similarity_map(slices[row], image)])
        original, reconstruction, similarity = CropBox(*model.crop).cut(images)
        yield ReconstructionRow(
            label=label,
            slice_id=slices.records[row].slice_id,
            original=original,
            codes=codes[row],
            reconstruction=reconstruction,
            similarity=similarity,
            ssim=scores["ssim"][row],
            ssim_foreground=scores["ssim_foreground"][row],
        )
