"""The code-grid file: where the two stages meet.

`code_grids.npz` in the run folder of a VQ-VAE holds its codes for the slices of the archive that it
was trained on, and says by hash which model made them of which archive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from brainslices.data.archive import SPLITS
from brainslices.errors import CORRUPT_FILE_ERRORS, InputError
from brainslices.runs.atomic import atomic_path

__all__ = ["CodeGrids", "SplitCodes", "entropy", "entropy_by_position"]

FORMAT_VERSION = 1
MEND = "Run encode_codes.py on the VQ-VAE's run again: it makes the file anew."


@dataclass(frozen=True, eq=False)
class SplitCodes:
    """The code grids of one split, in the archive's order.

    Args:
        codes: uint16 array of shape (n, r, c), values in [0, num_embeddings).
        slice_ids: str array of shape (n,), as in the archive.
        subjects: str array of shape (n,), whose head each slice is of.
        positions: float32 array of shape (n,), heights in the head in [0, 1], 0 = lowest.
    """

    codes: np.ndarray
    slice_ids: np.ndarray
    subjects: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, eq=False)
class CodeGrids:
    """The code grids of an archive's slices, and what made them.

    Args:
        splits: split name -> its codes; empty splits are absent.
        variants: uint16 array of shape (v, n_train, r, c), codes of v altered copies of each
            training slice; v may be 0.
        num_embeddings: codes in the codebook.
        grid_shape: (r, c), codes along the rows and the cols.
        image_shape: (rows, cols) of the pictures that were encoded.
        vqvae_hash: sha256, hexadecimal, of the `model.keras` that encoded them.
        vqvae_run: the run folder that it lay in.
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

    def save(self, path: str | Path) -> None:
        """Writes the file, atomically; its name must end in `.npz`."""
        arrays = {
            f"{name}_{field.name}": getattr(split, field.name)
            for name, split in self.splits.items()
            for field in fields(SplitCodes)
        }
        facts = {name: getattr(self, name) for name in _FACTS}
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                format_version=FORMAT_VERSION,
                train_variants=self.variants,
                **arrays,
                **facts,
            )

    @classmethod
    def load(cls, path: str | Path) -> "CodeGrids":
        """Reads the file that `save` wrote.

        Raises:
            InputError: if it is missing, damaged, of another format version, or contradicts itself.
        """
        path = Path(path)
        arrays = _read(path)
        version = arrays.get("format_version")
        if version is None or version.shape or version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, but this version of brainslices reads "
                f"{FORMAT_VERSION}. {MEND}"
            )
        names = [split for split in SPLITS if any(key in arrays for key in _keys(split))]
        wanted = {"train_variants", *_FACTS}.union(*map(_keys, names or SPLITS))
        if missing := wanted - set(arrays):
            raise InputError(f"{path} lacks {', '.join(sorted(missing))}. {MEND}")
        try:
            facts = {name: convert(arrays[name].tolist()) for name, convert in _FACTS.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}). {MEND}") from error
        splits = {name: SplitCodes(*(arrays[key] for key in _keys(name))) for name in names}
        grids = cls(splits=splits, variants=arrays["train_variants"], **facts)
        if fault := _fault(grids):
            raise InputError(f"{path} contradicts itself: {fault}. {MEND}")
        return grids


def _shape(sides) -> tuple[int, int]:
    rows, cols = map(int, sides)
    return rows, cols


_FACTS = {
    "num_embeddings": int,
    "grid_shape": _shape,
    "image_shape": _shape,
    "vqvae_hash": str,
    "vqvae_run": str,
    "archive_hash": str,
}


def _keys(split: str) -> list[str]:
    return [f"{split}_{field.name}" for field in fields(SplitCodes)]


def _read(path: Path) -> Mapping[str, np.ndarray]:
    """All arrays of the file, by name."""
    if not path.is_file():
        raise InputError(
            f"There is no {path}. Run encode_codes.py on the VQ-VAE's run: it makes the file."
        )
    try:
        with np.load(path) as file:
            return dict(file)
    except CORRUPT_FILE_ERRORS as error:
        raise InputError(f"{path} cannot be read ({error}). {MEND}") from error


def _fault(grids: CodeGrids) -> str | None:
    """What contradicts the rest of the file, if anything does."""
    train = grids.splits.get("train")
    shape = (0 if train is None else train.slice_ids.size, *grids.grid_shape)
    grouped = {"train_variants": (grids.variants, shape)}
    for name, split in grids.splits.items():
        grouped[f"{name}_codes"] = (split.codes, grids.grid_shape)
    for name, (codes, shape) in grouped.items():
        if codes.dtype != np.uint16 or codes.shape[1:] != shape:
            return f"{name} is {codes.dtype} {codes.shape}, expected uint16 and {shape} of each"
        if codes.size and codes.max() >= grids.num_embeddings:
            return f"{name} has a code {codes.max()}, but num_embeddings is {grids.num_embeddings}"
    for name, split in grids.splits.items():
        for key in ("slice_ids", "subjects", "positions"):
            found = getattr(split, key).shape
            if found != split.codes.shape[:1]:
                return f"{name}_{key} has shape {found}, but {name}_codes {split.codes.shape}"
    return None


def entropy(codes: np.ndarray, num_embeddings: int) -> float:
    """Entropy of the frequencies of codes, counted on those very codes.

    Args:
        codes: integer array of any shape.
        num_embeddings: codes in the codebook.

    Returns:
        Nats per code, from 0 (one code alone) to log(num_embeddings) (all alike).
    """
    counts = np.bincount(np.ravel(codes), minlength=num_embeddings)
    share = counts[counts > 0] / np.size(codes)
    return float(-np.sum(share * np.log(share)))


def entropy_by_position(codes: np.ndarray, num_embeddings: int) -> float:
    """Entropy of a code where its place on the grid is known, counted on those very codes.

    Args:
        codes: integer array of shape (n, r, c).
        num_embeddings: codes in the codebook.

    Returns:
        Nats per code: the mean over the grid of each place's `entropy`. Few slices (n below some
        times num_embeddings) make it too low.
    """
    places = np.reshape(codes, (len(codes), -1)).T
    return float(np.mean([entropy(place, num_embeddings) for place in places]))
