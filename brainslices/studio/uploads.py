"""Files that a user uploads: recognised by their content, limited in size, read by our readers."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from brainslices.data.images import read_image
from brainslices.data.volumes import axial_slices, read_volume
from brainslices.errors import CorruptFileError, InputError
from brainslices.reading import reading
from brainslices.types import PathLike

__all__ = ["MAX_BYTES", "Upload", "read_upload"]

# Of an uploaded file; of a file once decompressed, and of an image.
MAX_BYTES, MAX_DECOMPRESSED, MAX_PIXELS = 64 << 20, 256 << 20, 4096 * 4096
VOLUME_SLICES = 64
PNG, GZIP = b"\x89PNG\r\n\x1a\n", b"\x1f\x8b"
# Where the header of NIfTI-1 and NIfTI-2 files holds their magic number.
NIFTI = ((344, b"n+1\0"), (4, b"n+2\0"))
# Other files that people keep with their scans; they are never opened.
OTHER = {
    b"\x93NUMPY": "a NumPy array",
    b"PK": "a zip archive, as .keras and .npz files are",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xd8": "a JPEG image",
}


@dataclass(frozen=True, eq=False)
class Upload:
    """Slices to look at.

    Args:
        name: of the file or the slice, to show.
        slices: uint8 array of shape (n, rows, cols): one image, or a volume from low to high.
    """

    name: str
    slices: np.ndarray


def read_upload(path: PathLike, image_shape: tuple[int, int]) -> Upload:
    """Read a PNG image or a NIfTI volume.

    Args:
        path: the file; only its content says what it is.
        image_shape: (rows, cols) of the model. A volume is resampled to it, an image must have it.

    Raises:
        InputError: if the file is of another kind, corrupt, larger than the limits, or an image of
            another size. The message names the file without its folder.
    """
    path = Path(path)
    try:
        return Upload(path.name, _read(path, image_shape))
    except InputError as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error


def _read(path: Path, image_shape: tuple[int, int]) -> np.ndarray:
    with path.open("rb") as file:
        head = file.read(352)
    if head.startswith(PNG):
        return _read_png(path, image_shape)[None]
    if head.startswith(GZIP):
        head = _decompress(path)
    if not any(head[offset:].startswith(magic) for offset, magic in NIFTI):
        held = [kind for start, kind in OTHER.items() if head.startswith(start)]
        raise InputError(
            "The file must hold a PNG image or a NIfTI volume (.nii or .nii.gz). Received: "
            f"{path.name}, {held[0] if held else 'which is neither'}."
        )
    count = VOLUME_SLICES
    return axial_slices(read_volume(_with_suffix(path)), count, image_shape)[1]


def _read_png(path: Path, image_shape: tuple[int, int]) -> np.ndarray:
    with reading(path, "image", "Download it again or remove it."), Image.open(path) as file:
        cols, rows = file.size  # of the header; no pixel is decoded yet
    if rows * cols > MAX_PIXELS:
        raise InputError(
            f"{path} must have at most {MAX_PIXELS} pixels. Received: {rows} x {cols}."
        )
    image = read_image(path)
    if image.shape != tuple(image_shape):
        raise InputError(
            f"{path} has {image.shape[0]} x {image.shape[1]} pixels (rows x cols), but the model "
            f"takes {image_shape[0]} x {image_shape[1]}. Give an image of that size, or a volume."
        )
    return image


def _decompress(path: Path) -> bytes:
    """Return the first bytes of a compressed file; refuse it if it expands beyond the limit."""
    size, head = 0, b""
    with reading(path, "volume", "Download it again."), gzip.open(path) as file:
        while chunk := file.read(1 << 20):
            head = head or chunk[:352]
            size += len(chunk)
            if size > MAX_DECOMPRESSED:
                raise CorruptFileError(
                    f"{path} must hold at most {MAX_DECOMPRESSED >> 20} MB. Received: more, once "
                    "decompressed. Crop or downsample the volume."
                )
    return head


def _with_suffix(path: Path) -> Path:
    """Return a path whose suffix nibabel knows, since it trusts names rather than contents."""
    with path.open("rb") as file:
        suffix = ".nii.gz" if file.read(2) == GZIP else ".nii"
    if path.name.lower().endswith(suffix):
        return path
    linked = path.with_name(f"{path.name}{suffix}")
    linked.unlink(missing_ok=True)
    linked.hardlink_to(path)
    return linked
