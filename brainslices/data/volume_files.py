"""Read volume files: NIfTI and Analyze 7.5, by nibabel.

The header reorients a volume to canonical axes: x to the subject's right, y to the front, z up.
Analyze 7.5 has no reliable orientation; its axes are taken as nibabel takes them: voxels stored
from right to left, back to front, feet to head, unless an SPM `.mat` file beside it differs.
A NIfTI file with neither qform nor sform is read the same way. Oblique volumes are not resampled:
slices follow the volume's own planes.
"""

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.types import PathLike

__all__ = ["load_volume"]

_HINT = (
    "It may be truncated, or an .img or .hdr file may lack its partner. Download it again or "
    "remove it."
)


def load_volume(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Load a `.nii`, `.mgh` or `.hdr` with its `.img`, also compressed, in canonical orientation.

    Returns:
        Voxels, float32 of shape (x, y, z), scaled by the header; and the affine, float64 of shape
        (4, 4), from voxel indices to world coordinates in mm.

    Raises:
        InputError: if the file cannot be read, is not three-dimensional, or its voxels are not
            finite or all equal.
    """
    path = Path(path)
    with reading(path, "volume", _HINT):
        image = nib.load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise ValueError(f"it is a {type(image).__name__}")
    _check_header(path, image)
    with reading(path, "volume", _HINT):
        _check_size(image)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    _check_voxels(path, voxels)
    with reading(path, "volume", _HINT):  # its affine may be singular
        volume = nib.Nifti1Image(voxels.reshape(voxels.shape[:3]), image.affine)
        volume = nib.as_closest_canonical(volume)
        return volume.get_fdata(dtype=np.float32), volume.affine


def _check_header(path: Path, image: Any) -> None:
    """Check shape, orientation and data type before the voxels are read."""
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2 or not set(shape[3:]) <= {1}:
        raise InputError(
            f"{path} must hold one three-dimensional volume. Received: shape {shape}. Save one "
            "volume in a separate file, for example `nibabel.four_to_three(image)[0]`."
        )
    zooms = image.header.get_zooms()
    if not np.isfinite(zooms).all():
        raise InputError(f"{path} must have finite voxel sizes. Received: {zooms}. Repair pixdim.")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise InputError(f"{path} has a header whose affine is singular. Repair its sform.")
    is_analyze = isinstance(image, nib.AnalyzeImage) and not isinstance(image, nib.Nifti1Pair)
    orient = image.header["orient"].item() if is_analyze else b""
    # Values 1 to 5 mean coronal, sagittal or flipped; nibabel ignores them.
    if orient in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InputError(
            f"{path} must be stored transverse unflipped (Analyze orient 0). Received: orient "
            f"{orient[0]}. Convert it to NIfTI with the right orientation."
        )
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(
            f"{path} must hold one number per voxel. Received: data type "
            f"{image.get_data_dtype()}. Convert it to a scalar volume."
        )


def _check_size(image: Any) -> None:
    """Check that the file holds the voxels that its header claims, before they are allocated."""
    file = Path(image.file_map["image"].filename)
    is_compressed = file.suffix.lower() in (".gz", ".mgz")
    size = _decompressed_size(file) if is_compressed else file.stat().st_size
    voxels = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    claimed = int(image.dataobj.offset) + voxels
    if claimed > size:
        raise ValueError(f"its header claims {claimed} bytes, but it holds {size}")


def _decompressed_size(path: Path) -> int:
    """Decompress to the end of the stream, since nibabel stops before the checksum."""
    size = 0
    with gzip.open(path) as stream:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
    return size


def _check_voxels(path: Path, voxels: np.ndarray) -> None:
    invalid = voxels.size - np.count_nonzero(np.isfinite(voxels))
    if invalid:
        raise InputError(
            f"{path} holds {invalid} voxels that are NaN or infinite. Replace them, for example by "
            "`numpy.nan_to_num`, or remove the volume."
        )
    if voxels.min() == voxels.max():
        raise InputError(
            f"{path} holds the value {voxels.flat[0]:g} in every voxel: it shows no head. "
            "Download or convert it again, or remove it."
        )
