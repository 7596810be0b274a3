"""Reading of NumPy files, whose headers are checked before anything is allocated."""

import math
import zipfile
from pathlib import Path

import numpy as np

from brainslices.types import PathLike

__all__ = ["read_array", "read_arrays"]

# The most that deflate compresses.
MAX_RATIO = 1032


def read_array(path: PathLike) -> np.ndarray:
    """Map a `.npy` file into memory, read-only.

    Raises:
        ValueError: if it is not one, or its header claims more than the file holds.
    """
    array = np.load(path, mmap_mode="r")
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays")
    return array


def read_arrays(path: PathLike) -> dict[str, np.ndarray]:
    """Read all arrays of a `.npz` file by name.

    Raises:
        Exception: of nearly any type if it is not one, or a header claims more than the file holds;
            to be called within `reading`.
    """
    _check_sizes(Path(path))
    with np.load(path) as file:
        return dict(file)


def _check_sizes(path: Path) -> None:
    formats = np.lib.format
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            with file.open(entry) as stream:
                is_v1 = formats.read_magic(stream) == (1, 0)
                read = formats.read_array_header_1_0 if is_v1 else formats.read_array_header_2_0
                shape, _, dtype = read(stream)
                claimed = stream.tell() + math.prod(shape) * dtype.itemsize
            # The entry's size is a claim too.
            size = min(entry.file_size, MAX_RATIO * path.stat().st_size)
            if min(shape, default=0) < 0 or claimed > size:
                raise ValueError(f"{entry.filename} claims {claimed} bytes, but it holds {size}")
