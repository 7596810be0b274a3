"""Read volume files: NIfTI, Analyze 7.5 and MGH (.mgh, .mgz), by nibabel.

The header reorients a volume to canonical axes: x to the subject's right, y to the front, z up.
Analyze 7.5 stores no reliable orientation; nibabel's default applies: voxels stored from right to
left, back to front, feet to head, unless an SPM `.mat` file beside it differs.
A NIfTI file with neither qform nor sform is read the same way. Oblique volumes are not resampled:
slices follow the volume's own planes.
"""

import gzip
import logging
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.types import PathLike

__all__ = ["load_volume"]

# Code of a NIfTI header -> mm: unknown, metres, millimetres, microns.
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# What nibabel repairs in a header is checked below; its own messages name no file.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
_HINT = (
    "It may be truncated, or an .img or .hdr file may lack its partner. Download it again or "
    "remove it."
)


def load_volume(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Load a `.nii`, `.mgh` or `.hdr` with its `.img`, also compressed, in canonical orientation.

    Returns:
        Voxels, float32 of shape (x, y, z), scaled by the header; and the affine, float64 of shape
        (4, 4), from voxel indices to world coordinates in mm, also if the header has other units. A
        two-dimensional file is a volume of one plane.

    Raises:
        InputError: if the file cannot be read or does not hold one volume or axial plane.
    """
    path = Path(path)
    with reading(path, "volume", _HINT):
        image = nib.load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise InputError(
                f"{path} must be a NIfTI, MGH or Analyze volume. Received: {type(image).__name__}. "
                "Convert or remove it."
            )
        _check_header(path, image)
        _check_size(image)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        # A two-dimensional file becomes a volume of one plane.
        shape = (*voxels.shape[:3], 1)[:3]
        volume = nib.Nifti1Image(voxels.reshape(shape), _affine_in_mm(image))
        volume = nib.as_closest_canonical(volume)
        voxels = volume.get_fdata(dtype=np.float32)
    if min(voxels.shape[:2]) < 2:
        raise InputError(
            f"{path} must hold a volume or an axial plane. Received: one plane of shape "
            f"{voxels.shape} along x, y and z. Remove it."
        )
    return voxels, volume.affine


def _affine_in_mm(image: Any) -> np.ndarray:
    """The affine scaled to millimetres, by the units of a NIfTI header."""
    has_units = isinstance(image, nib.Nifti1Pair)
    unit = int(image.header["xyzt_units"]) % 8 if has_units else 0  # the low three bits are length
    if unit not in MM_PER_UNIT:
        raise InputError(
            f"{image.get_filename()} must have a unit of length from 0 to 3 in `xyzt_units`. "
            f"Received: {unit}. Repair its header."
        )
    return image.affine * np.array([*[MM_PER_UNIT[unit]] * 3, 1.0])[:, np.newaxis]


def _check_header(path: Path, image: Any) -> None:
    """Check shape, orientation and data type before the voxels are read."""
    shape = tuple(map(int, image.shape))
    sides = (*shape, 1)[:3]
    has_plane = len(shape) >= 2 and min(sides) >= 1 and sum(side > 1 for side in sides) >= 2
    if not has_plane or not set(shape[3:]) <= {1}:
        raise InputError(
            f"{path} must hold one volume or one axial plane. Received: shape {shape}. Split a "
            "file of several volumes with `nibabel.four_to_three(image)`; remove an empty one."
        )
    zooms = image.header.get_zooms()
    if not np.isfinite(zooms).all():
        raise InputError(f"{path} must have finite voxel sizes. Received: {zooms}. Repair pixdim.")
    affine = _affine_in_mm(image)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{path} must have a finite, invertible affine. Received: {affine.tolist()}. Repair "
            "the orientation in its header (NIfTI: sform or qform)."
        )
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
