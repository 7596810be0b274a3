"""Code grids of a trained VQ-VAE: codes of all slices of its archive and of augmented copies."""

import contextlib
import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from brainslices.compilation import compiled
from brainslices.data.archive import SPLITS, SliceArchive
from brainslices.data.batches import padded_batches
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, nats_by_position
from brainslices.data.crop import CropBox
from brainslices.errors import CorruptFileError, InputError
from brainslices.progress import bar
from brainslices.resources import check_needed
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from brainslices.types import PathLike
from vqvae.model import VQVAE

__all__ = ["augment", "linked_archive", "load_or_encode", "summary"]


def load_or_encode(
    run: PathLike,
    data: PathLike | None = None,
    variants: int = 0,
    batch_size: int = 64,
    path: PathLike | None = None,
) -> CodeGrids:
    """Load the codes of every slice of the archive that a VQ-VAE was trained on, or encode it.

    The file of code grids is read if the same model wrote it with at least as many variants;
    otherwise all slices are encoded and the file is written.

    Args:
        run: run folder of a trained VQ-VAE.
        data: the slice archive; None takes the path in the run's `environment.json`.
        variants: number of augmented copies of each training slice, as `augment` makes them.
        batch_size: slices encoded at a time; the codes do not depend on it.
        path: the file of code grids, for a run that cannot be written; None takes the run's
            `code_grids.npz`.

    Raises:
        InputError: if the run or the archive cannot be used, or another process uses the run.
    """
    for name, value, minimum in (("variants", variants, 0), ("batch_size", batch_size, 1)):
        if value < minimum:
            raise InputError(f"`{name}` must be at least {minimum}. Received: {name}={value}.")
    run = Run(run)
    lock = run.lock() if path is None else contextlib.nullcontext()
    path = run.code_grids_path if path is None else Path(path)
    archive_hash = run.open_config("vqvae")["archive_hash"]
    run.trained_model_path()
    archive = None if data is None else linked_archive(run, data)
    grids = _load_cached(path, run, archive_hash)
    if grids is None or len(grids.variants) < variants:
        archive = archive or linked_archive(run)
        with lock:
            grids = _encode(run, archive, variants, batch_size)
            grids.save(path)
    # The run may have been moved since the file was written.
    moved = str(run.path.resolve())
    return dataclasses.replace(grids, vqvae_run=moved, variants=grids.variants[:variants])


def linked_archive(run: PathLike, data: PathLike | None = None) -> SliceArchive:
    """Open the slice archive that a VQ-VAE was trained on.

    Args:
        run: the VQ-VAE's run folder.
        data: the archive's folder; None takes the path in the run's `environment.json`.

    Raises:
        InputError: if there is no such archive, or its content differs.
    """
    run = Run(run)
    expected_hash = run.open_config("vqvae")["archive_hash"]
    if data is None:
        data = run.read_environment().get("archive")
        if data is None:
            raise InputError(
                f"{run.environment_path} does not name the archive that run {run.path} was trained "
                "on. Pass that archive as --data."
            )
        if not os.path.isdir(data):  # not `Path.is_dir`, which raises where a folder is closed
            raise InputError(
                f"Run {run.path} was trained on the archive {data}, which cannot be reached. Pass "
                "its new path as --data."
            )
    archive = SliceArchive.open(Path(data))
    if archive.content_hash != expected_hash:
        raise InputError(
            f"{data} is not the archive that run {run.path} was trained on: its content hash is "
            f"{archive.content_hash[:12]}, expected {expected_hash[:12]}. Pass the matching "
            "archive as --data."
        )
    return archive


def augment(
    images: np.ndarray, variant: int, rows: np.ndarray, max_shift: tuple[int, int]
) -> np.ndarray:
    """Make augmented copies of slices.

    Variant 0 is the slices themselves. Odd variants are flipped left to right. Variants from 2 on
    are shifted by whole pixels as well, with zeros moving in. The shift is a function of the
    variant and the slice's row number alone.

    Args:
        images: array of shape (batch, rows, cols, 1).
        variant: number of the variant.
        rows: int array of shape (batch,), the slices' row numbers in their archive.
        max_shift: largest shift in pixels, in either direction, along (rows, cols).

    Returns:
        New array of the same shape and dtype.

    Example:
        >>> image = np.array([[1, 2], [3, 4]], "uint8")[None, ..., None]
        >>> augment(image, 1, np.array([0]), (1, 1))[0, ..., 0].tolist()
        [[3, 4], [1, 2]]
    """
    # The rows of a slice run from one side of the head to the other.
    images = images[:, ::-1] if variant % 2 else images
    if variant < 2:
        return images.copy()
    shifted, limits = np.empty_like(images), np.array(max_shift)
    for index, row in enumerate(rows):
        rng = np.random.default_rng([variant, row])
        down, right = rng.integers(-limits, limits, endpoint=True)
        window = CropBox(-down, -right, *images.shape[1:3])
        shifted[index] = window.cut(images[index : index + 1])[0]
    return shifted


def summary(grids: CodeGrids) -> str:
    """Describe code grids in two lines of text."""
    counts = [f"{name} {len(split)}" for name, split in grids.splits.items()]
    codes, num_embeddings = grids.splits["train"].codes, grids.num_embeddings
    bits = entropy(codes, num_embeddings) / math.log(2)
    validation = grids.splits["validate"].codes
    bits_by_position = nats_by_position(validation, codes, num_embeddings) / math.log(2)
    rows, cols = grids.grid_shape
    return (
        f"{', '.join(counts)} slices and {len(grids.variants)} variants of the train slices, "
        f"each a grid of {rows} x {cols} out of {num_embeddings} codes\n"
        f"order-0 entropy of the train slices: {bits:.3f} bits per code of "
        f"{math.log2(num_embeddings):.3f} raw; {bits_by_position:.3f} for a code of a "
        "validate slice by its position on the grid"
    )


def _load_cached(path, run, archive_hash):
    """Read the code grids of an earlier call; None if missing, corrupt or of another model.

    Raises:
        InputError: if writing `path` would overwrite a file that is not the run's own.
    """
    grids = None
    if path.exists():
        expected = (file_hash(run.model_path), archive_hash)
        with contextlib.suppress(CorruptFileError):
            loaded = CodeGrids.load(path)
            grids = loaded if (loaded.vqvae_hash, loaded.archive_hash) == expected else None
    is_foreign = path != run.code_grids_path and path.exists() and grids is None
    if path.suffix != ".npz" or is_foreign:
        raise InputError(
            "`path` must be a new .npz file, or code grids that this run and archive made. "
            f"Received: path={str(path)!r}. Give another file as --codes, or remove it."
        )
    return grids


def _encode(run, archive, variants, batch_size):
    """Encode every split and the variants; the caller holds the run's lock."""
    # In half precision the codes would depend on the device and on the batch size.
    model = VQVAE.from_run(run, "float32")
    encoder, max_shift = compiled(model.encode_to_codes, model), _max_shift(model)
    rows = {name: archive.indices(name) for name in SPLITS if archive.counts[name]["slices"]}
    train_codes = len(rows["train"]) * math.prod(model.code_grid_shape)
    check_needed(f"variants={variants}", memory=2 * train_codes * variants)
    count = len(archive.index) + variants * len(rows["train"])
    with bar(count, "encoding", "slices") as progress:

        def encode(split, variant=0):
            codes = []
            for images, size in _augmented_batches(
                archive, rows[split], batch_size, variant, max_shift
            ):
                codes.append(np.asarray(encoder(images))[:size].astype("uint16"))
                progress.update(size)
            return np.concatenate(codes)

        splits = {name: _split_codes(archive, rows[name], encode(name)) for name in rows}
        variant_codes = np.empty((variants, *splits["train"].codes.shape), "uint16")
        for index in range(variants):
            variant_codes[index] = encode("train", index + 1)
    return CodeGrids(
        splits=splits,
        variants=variant_codes,
        num_embeddings=model.config.num_embeddings,
        grid_shape=model.code_grid_shape,
        image_shape=archive.image_shape,
        vqvae_hash=model.file_hash,
        vqvae_run=str(run.path.resolve()),
        archive_hash=archive.content_hash,
    )


def _augmented_batches(archive, rows, batch_size, variant, max_shift):
    """Yield batches of a variant of the slices in `rows`, and how many are not padding."""
    batch_size = min(batch_size, len(archive.index))  # the same for all splits
    for indices, size in padded_batches(len(rows), batch_size):
        images = archive.load(rows[indices])
        yield augment(images, variant, rows[indices], max_shift), size


def _max_shift(model):
    """Return half a code's side in source pixels; larger shifts repeat the same alignments."""
    sides = zip(model.crop[2:], model.code_grid_shape, strict=True)
    return tuple(max(1, pixels // (2 * codes)) for pixels, codes in sides)


def _split_codes(archive, rows, codes):
    records = [archive.index[row] for row in rows]
    return SplitCodes(
        codes=codes,
        slice_ids=np.array([record.slice_id for record in records]),
        subjects=np.array([record.subject for record in records]),
        positions=np.array([record.position for record in records], "float32"),
    )
