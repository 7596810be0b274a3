"""The slices of a reconstruction figure as arrays, in `examples.npz`."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from brainslices.data.images import to_uint8
from brainslices.reading import reading
from brainslices.runs.arrays import read_arrays
from brainslices.types import PathLike
from brainslices.visualization.figures import ReconstructionRow

__all__ = ["read_examples", "write_examples"]

NAMES = tuple(field.name for field in fields(ReconstructionRow))
IMAGES = ("original", "reconstruction", "similarity")
# Field -> kinds of dtype and number of dimensions of its stacked values.
FORMATS = {"label": ("U", 1), "slice_id": ("U", 1), "codes": ("u", 3), "ssim": ("f", 1)}
FORMATS |= {"ssim_foreground": ("f", 1), **dict.fromkeys(IMAGES, ("u", 3))}


def write_examples(path: PathLike, rows: Sequence[ReconstructionRow], counts: np.ndarray) -> None:
    """Write slices with their codes and reconstructions; images are rounded to 8 bits.

    Args:
        path: the `.npz` file to write.
        rows: the slices, at least one.
        counts: how often each code was used over all slices, int64 of shape (num_embeddings,).
    """
    arrays = {name: np.stack([getattr(row, name) for row in rows]) for name in NAMES}
    for name in IMAGES:
        arrays[name] = to_uint8(arrays[name])
    arrays["codes"] = arrays["codes"].astype("uint16")
    arrays["code_counts"] = counts.astype("int64")
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_examples(path: PathLike) -> tuple[list[ReconstructionRow], np.ndarray]:
    """Read the file of `write_examples`; returns its arguments `rows` and `counts`.

    Raises:
        InputError: if the file is missing, corrupt or holds other arrays.
    """
    with reading(path, "file of examples", "Run reconstruct.py again."):
        arrays = read_arrays(path)
        counts = arrays["code_counts"]
        for name, (kind, dimensions) in FORMATS.items():
            array = arrays[name]
            if array.dtype.kind != kind or array.ndim != dimensions:
                raise ValueError(f"`{name}` has the wrong type: {array.dtype} {array.shape}")
        shapes = {arrays[name].shape for name in IMAGES}
        if len({len(arrays[name]) for name in NAMES}) > 1 or len(shapes) > 1:
            raise ValueError("its arrays do not describe the same slices")
        if counts.ndim != 1 or arrays["codes"].max(initial=0) >= len(counts):
            raise ValueError("it holds codes that `code_counts` does not count")
        for name in IMAGES:
            arrays[name] = arrays[name].astype("float32") / 255
        columns = (arrays[name] for name in NAMES)
        return [ReconstructionRow(*values) for values in zip(*columns, strict=True)], counts
