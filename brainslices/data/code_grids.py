"""Code grids of a VQ-VAE: the file through which the two stages meet.

`code_grids.npz` in the run folder of a VQ-VAE holds the codes of every slice of the archive that it
was trained on, and the hashes of the model and of the archive.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from brainslices.data.splits import SPLITS
from brainslices.errors import CorruptFileError, InputError
from brainslices.reading import reading
from brainslices.runs.arrays import read_arrays
from brainslices.runs.atomic import atomic_path
from brainslices.schema import CODEBOOK_SIZE, SHAPE, STRING, check_fields
from brainslices.types import PathLike

__all__ = ["CodeGrids", "SplitCodes", "check_codes", "entropy", "nats_by_position"]

FORMAT_VERSION = 1
# Of 16 to 512, 64 and 128 make OASIS validation codes cheapest, with 32 to 5,216 training grids.
SMOOTHING = 64
_REPAIR = "Run encode_codes.py on the VQ-VAE's run to encode the slices again."
_METADATA = {
    "num_embeddings": CODEBOOK_SIZE,
    "grid_shape": SHAPE,
    "image_shape": SHAPE,
    "vqvae_hash": STRING,
    "vqvae_run": STRING,
    "archive_hash": STRING,
}


@dataclass(frozen=True, eq=False)
class SplitCodes:
    """The code grids of one split, in the archive's order.

    Args:
        codes: uint16 array of shape (n, r, c), values in [0, num_embeddings).
        slice_ids: str array of shape (n,), as in the archive.
        subjects: str array of shape (n,), the subject of each slice.
        positions: float32 array of shape (n,), slice positions in [0, 1], 0 = lowest.
    """

    codes: np.ndarray
    slice_ids: np.ndarray
    subjects: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, eq=False)
class CodeGrids:
    """The code grids of an archive's slices, with their provenance.

    Args:
        splits: split name -> its codes; empty splits are absent.
        variants: uint16 array of shape (v, n_train, r, c), codes of v augmented copies of each
            training slice; v may be 0.
        num_embeddings: number of codes in the codebook.
        grid_shape: (r, c), number of codes along the rows and the cols.
        image_shape: (rows, cols) of the encoded images.
        vqvae_hash: sha256, hexadecimal, of the `model.keras` that encoded them.
        vqvae_run: run folder of that model.
        archive_hash: content hash of the archive.
    """

    splits: dict[str, SplitCodes]
    variants: np.ndarray
    num_embeddings: int
    grid_shape: tuple[int, int]
    image_shape: tuple[int, int]
    vqvae_hash: str
    vqvae_run: str
    archive_hash: str

    def save(self, path: PathLike) -> None:
        """Write the file atomically; its name must end in `.npz`."""
        arrays = {
            f"{name}_{field.name}": getattr(split, field.name)
            for name, split in self.splits.items()
            for field in fields(SplitCodes)
        }
        metadata = {name: getattr(self, name) for name in _METADATA}
        with atomic_path(Path(path)) as temporary:
            np.savez(
                temporary,
                format_version=FORMAT_VERSION,
                train_variants=self.variants,
                **arrays,
                **metadata,
            )

    @classmethod
    def load(cls, path: PathLike) -> "CodeGrids":
        """Read a file that `save` wrote.

        Raises:
            InputError: if it is missing, corrupt, of another format version, or inconsistent.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist. {_REPAIR}")
        with reading(path, "file of code grids", _REPAIR):
            return cls._parse(path, read_arrays(path))

    @classmethod
    def _parse(cls, path: Path, arrays: dict[str, np.ndarray]) -> "CodeGrids":
        version = arrays.get("format_version")
        if version is None or version.shape or version != FORMAT_VERSION:
            raise CorruptFileError(
                f"{path} must have format version {FORMAT_VERSION}. Received: "
                f"format_version={version}. {_REPAIR}"
            )
        names = [split for split in SPLITS if any(key in arrays for key in _keys(split))]
        required = {"train_variants", *_METADATA}.union(*map(_keys, names or SPLITS))
        if missing := required - set(arrays):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        metadata = check_fields({key: arrays[key].tolist() for key in _METADATA}, _METADATA)
        for key in ("grid_shape", "image_shape"):
            metadata[key] = tuple(metadata[key])
        splits = {name: SplitCodes(*(arrays[key] for key in _keys(name))) for name in names}
        grids = cls(splits=splits, variants=arrays["train_variants"], **metadata)
        _check_consistent(grids)
        return grids


def _keys(split: str) -> list[str]:
    return [f"{split}_{field.name}" for field in fields(SplitCodes)]


def _check_consistent(grids: CodeGrids) -> None:
    train = grids.splits.get("train")
    grid_shape: tuple[int, ...] = grids.grid_shape
    train_shape = (0 if train is None else train.slice_ids.size, *grid_shape)
    grouped = {"train_variants": (grids.variants, train_shape)}
    for name, split in grids.splits.items():
        grouped[f"{name}_codes"] = (split.codes, grid_shape)
    for name, (codes, item_shape) in grouped.items():
        if codes.dtype != np.uint16 or codes.shape[1:] != item_shape:
            raise ValueError(
                f"`{name}` must be uint16 of shape (n, {str(item_shape)[1:]}. Received: "
                f"{codes.dtype} {codes.shape}"
            )
        if codes.size and codes.max() >= grids.num_embeddings:
            raise ValueError(
                f"`{name}` must be under num_embeddings={grids.num_embeddings}. Received: code "
                f"{codes.max()}"
            )
    for name, split in grids.splits.items():
        for key in ("slice_ids", "subjects", "positions"):
            length = getattr(split, key).shape
            if length != split.codes.shape[:1]:
                raise ValueError(
                    f"`{name}_{key}` must have shape {split.codes.shape[:1]}. Received: {length}"
                )
        kinds = {"slice_ids": "U", "subjects": "U", "positions": "f"}
        for key, kind in kinds.items():
            if (dtype := getattr(split, key).dtype).kind != kind:
                raise ValueError(f"`{name}_{key}` has the wrong type. Received: {dtype}")
        if not ((split.positions >= 0) & (split.positions <= 1)).all():
            raise ValueError(f"`{name}_positions` must be in [0, 1]")


def check_codes(codes: Any, num_embeddings: int) -> None:
    """Check the codes of an array; a tensor of a compiled function has no values yet.

    Args:
        codes: an array or a tensor of any shape.
        num_embeddings: number of codes in the codebook.

    Raises:
        InputError: if an array holds anything but integers from 0 to num_embeddings - 1.
    """
    if not isinstance(codes, np.ndarray) or not codes.size:
        return
    if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= num_embeddings:
        raise InputError(
            f"`codes` must be integers from 0 to {num_embeddings - 1}, without masked codes. "
            f"Received: {codes.dtype} from {codes.min()} to {codes.max()}."
        )


def entropy(codes: np.ndarray, num_embeddings: int) -> float:
    """Compute the order-0 entropy of codes from their empirical frequencies.

    Args:
        codes: integer array of any shape.
        num_embeddings: number of codes in the codebook.

    Returns:
        Nats per code, from 0 (a single code) to log(num_embeddings) (uniform frequencies).

    Example:
        >>> round(entropy(np.array([0, 0, 1, 1]), 8), 4)  # log(2)
        0.6931
    """
    counts = np.bincount(np.ravel(codes), minlength=num_embeddings)
    frequencies = counts[counts > 0] / np.size(codes)
    return float(-np.sum(frequencies * np.log(frequencies)))


def nats_by_position(codes: np.ndarray, train_codes: np.ndarray, num_embeddings: int) -> float:
    """Compute the cost of codes without a prior: by how often their position had them in training.

    The frequencies at a position are smoothed towards those over the whole grid, which count as
    much as `SMOOTHING` training grids: without that, codes that a position has not had in training
    would cost infinitely much.

    Args:
        codes: integer array of shape (n, r, c).
        train_codes: integer array of shape (m, r, c).
        num_embeddings: number of codes in the codebook.

    Returns:
        Nats per code: mean of -log(frequency) over the grid positions.
    """
    overall = np.bincount(np.ravel(train_codes), minlength=num_embeddings) + 1.0
    overall *= SMOOTHING / overall.sum()
    columns = (np.reshape(grids, (len(grids), -1)).T for grids in (codes, train_codes))
    costs = []
    for column, train_column in zip(*columns, strict=True):
        counts = np.bincount(train_column, minlength=num_embeddings) + overall
        costs.append(-np.log(counts[column] / counts.sum()).mean())
    return float(np.mean(costs))
