"""Code grids of a trained VQ-VAE: every slice of its archive, and altered copies, as codes."""

import dataclasses
import functools
import math
from pathlib import Path

import keras
import numpy as np

from brainslices.data.archive import SPLITS, SliceArchive
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, entropy_by_position
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.progress import bar
from brainslices.runs.json_files import read_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from vqvae.model import VQVAE

__all__ = ["linked_archive", "augment", "code_grids", "summary"]


def code_grids(
    run: Path, data: Path | None = None, variants: int = 0, batch_size: int = 64
) -> CodeGrids:
    """The codes of every slice of the archive that a VQ-VAE was trained on.

    They are read from the run's `code_grids.npz` if this very model made it with as many variants
    or more; else all slices are encoded and the file is written.

    Args:
        run: folder of a trained VQ-VAE.
        data: the slice archive; None takes the path that the run's `environment.json` tells.
        variants: number of altered copies of each training slice, as `augment` makes them; they
            are altered before they are encoded.
        batch_size: slices encoded at a time.

    Raises:
        InputError: if the run or the archive cannot be used, or another process uses the run.
    """
    for name, value, least in (("variants", variants, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}. Received: {name}={value}.")
    run = Run(run)
    wanted = run.open_config("vqvae")["archive_hash"]
    run.trained_model_path()
    archive = None if data is None else linked_archive(run, data)
    grids = _kept(run, wanted)
    if grids is None or len(grids.variants) < variants:
        archive = archive or linked_archive(run)
        with run.lock():
            grids = _encode(run, archive, variants, batch_size)
            grids.save(run.code_grids_path)
    # The run may have been moved since the file was written.
    found = {"vqvae_run": str(run.path.resolve()), "variants": grids.variants[:variants]}
    return dataclasses.replace(grids, **found)


def linked_archive(run: Run, data: Path | None = None) -> SliceArchive:
    """The slice archive that a VQ-VAE was trained on.

    Args:
        run: the VQ-VAE's run.
        data: the archive's folder; None takes the path that the run's `environment.json` tells.

    Raises:
        InputError: if it is not there, or holds other slices.
    """
    wanted = run.open_config("vqvae")["archive_hash"]
    if data is None:
        path = run.environment_path
        data = read_json(path).get("archive") if path.is_file() else None
        if data is None:
            raise InputError(
                f"Run {run.path} does not tell where its archive lies. Give the archive that it "
                "was trained on as --data."
            )
        if not Path(data).is_dir():
            raise InputError(
                f"Run {run.path} was trained on the archive {data}, which is no longer there. Give "
                "its new place as --data."
            )
    archive = SliceArchive.open(data)
    if archive.content_hash != wanted:
        raise InputError(
            f"{data} is another archive (content {archive.content_hash[:12]}) than run {run.path} "
            f"was trained on (content {wanted[:12]}). Give that one as --data."
        )
    return archive


def augment(
    images: np.ndarray, variant: int, rows: np.ndarray, max_shift: tuple[int, int]
) -> np.ndarray:
    """Alter slices, each the same way whatever other slices and variants are asked for.

    Variant 0 is the slices as they are. Odd variants are mirrored left to right; from variant 2 on
    they are moved by whole pixels too, zeros moving in.

    Args:
        images: array of shape (batch, rows, cols, 1).
        variant: int, which of the variants.
        rows: int array of shape (batch,), the slices' row numbers in their archive.
        max_shift: pixels that a slice is moved at most, either way, along (rows, cols).

    Returns:
        New array of the same type and shape.
    """
    # Rows of a slice run from one side of the head to the other.
    images = images[:, ::-1] if variant % 2 else images
    if variant < 2:
        return images.copy()
    moved, most = np.empty_like(images), np.array(max_shift)
    for index, row in enumerate(rows):
        rng = np.random.default_rng([variant, row])
        down, right = rng.integers(-most, most, endpoint=True)
        window = CropBox(-down, -right, *images.shape[1:3])
        moved[index] = window.cut(images[index : index + 1])[0]
    return moved


def summary(grids: CodeGrids) -> str:
    """What some code grids hold, in two lines of text."""
    counts = [f"{name} {len(split)}" for name, split in grids.splits.items()]
    codes, count = grids.splits["train"].codes, grids.num_embeddings
    whole, placed = (of(codes, count) / math.log(2) for of in (entropy, entropy_by_position))
    rows, cols = grids.grid_shape
    return (
        f"{', '.join(counts)} slices and {len(grids.variants)} variants of the train slices, "
        f"each a grid of {rows} x {cols} out of {count} codes\n"
        f"order-0 entropy of the train slices: {whole:.3f} bits per code, {placed:.3f} where its "
        f"place on the grid is known, of {math.log2(count):.3f} raw"
    )


def _kept(run, archive_hash):
    """The code grids of an earlier call, unless the file is damaged or of another model."""
    try:
        grids = CodeGrids.load(run.code_grids_path)
    except InputError:
        return None
    made_of = (grids.vqvae_hash, grids.archive_hash)
    return grids if made_of == (file_hash(run.model_path), archive_hash) else None


class _Encoder(keras.Model):
    """A VQ-VAE's way from pictures to codes alone, for Keras to compile."""

    def __init__(self, vqvae: VQVAE):
        super().__init__(name="code_encoder")
        self.vqvae = vqvae

    def call(self, images):
        return self.vqvae.encode_to_codes(images)


def _encode(run, archive, variants, batch_size):
    """Encodes every split and the variants; the run's lock is held."""
    # In half precision codes would depend on the device, and on the batch they come in.
    encoder = _Encoder(VQVAE.from_run(run, "float32"))
    indices = {name: archive.indices(name) for name in SPLITS if archive.counts[name]["slices"]}
    train = indices["train"]
    total = len(archive.index) + variants * len(train)
    with bar(total, "encoding", "slices") as progress:
        encode = functools.partial(_codes, encoder, archive, batch_size, progress)
        splits = {name: _split(archive, rows, encode(rows)) for name, rows in indices.items()}
        altered = np.empty((variants, *splits["train"].codes.shape), "uint16")
        for number in range(variants):
            altered[number] = encode(train, number + 1)
    return CodeGrids(
        splits=splits,
        variants=altered,
        num_embeddings=encoder.vqvae.config.num_embeddings,
        grid_shape=encoder.vqvae.code_grid_shape,
        image_shape=archive.image_shape,
        vqvae_hash=file_hash(run.model_path),
        vqvae_run=str(run.path.resolve()),
        archive_hash=archive.content_hash,
    )


def _codes(encoder, archive, batch_size, progress, rows, variant=0):
    """Codes, uint16 of shape (n, r, c), of some slices or of a variant of them."""
    batch_size = min(batch_size, len(archive.index))
    codes = np.empty((len(rows), *encoder.vqvae.code_grid_shape), "uint16")
    max_shift = _max_shift(encoder.vqvae)
    # One shape, one compilation: the last batch is filled up with black.
    batch = np.zeros((batch_size, *archive.image_shape, 1), "float32")
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        batch[: len(chosen)] = augment(archive.load(chosen), variant, chosen, max_shift)
        batch[len(chosen) :] = 0
        codes[start : start + batch_size] = encoder.predict_on_batch(batch)[: len(chosen)]
        progress.update(len(chosen))
    return codes


def _max_shift(model):
    """Half a code's side in source pixels: further gives no new alignment of slice and grid."""
    sides = zip(model.crop[2:], model.code_grid_shape, strict=True)
    return tuple(max(1, pixels // (2 * codes)) for pixels, codes in sides)


def _split(archive, rows, codes):
    records = [archive.index[row] for row in rows]
    return SplitCodes(
        codes=codes,
        slice_ids=np.array([record.slice_id for record in records]),
        subjects=np.array([record.subject for record in records]),
        positions=np.array([record.position for record in records], "float32"),
    )
