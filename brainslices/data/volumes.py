"""Axial slices out of brain volumes: NIfTI and Analyze 7.5, read by nibabel.

A volume is turned by its header to canonical axes: x to the subject's right, y to the front, z up.
Analyze 7.5 has no dependable orientation; its axes are taken as nibabel takes them: voxels stored
from right to left, back to front, feet to head, unless a `.mat` file of SPM beside it says other.
A NIfTI file with neither qform nor sform is taken the same way. What is left of an oblique turn is
kept: slices follow the volume's own planes.

Slices are shown as the public OASIS PNG release shows them: rows run from the subject's left
(top) to the right, columns from the back of the head (left) to the forehead.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from scipy import ndimage

from brainslices.errors import InputError

__all__ = ["INTENSITY_RULE", "Volume", "axial_slices", "read_volume"]

INTENSITY_RULE = (
    "per volume: percentile 2 of all voxels becomes 0, percentile 99 of the head's voxels 255, "
    "linear between, clipped"
)
PIXEL_MM = 1.0
# The least head area, in parts of the largest plane's, that is no stray noise.
LEAST_AREA = 0.01
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    HeaderDataError,
    ImageDataError,
    ImageFileError,
)


@dataclass(frozen=True)
class Volume:
    """A head on a regular grid, its axes canonical.

    Args:
        name: where it came from, for messages.
        voxels: float32 of shape (x, y, z), in [0, 1] by `INTENSITY_RULE`.
        spacing: voxel sides along x, y and z, in mm.
        bottom_mm: world z of the lowest plane.
        head_mm: world z of the lowest and the highest plane of the head.
    """

    name: str
    voxels: np.ndarray
    spacing: tuple[float, float, float]
    bottom_mm: float
    head_mm: tuple[float, float]


def read_volume(path: str | Path) -> Volume:
    """Reads a `.nii`, `.nii.gz`, or `.hdr` with its `.img` beside it.

    The head is what exceeds the robust intensity range's lowest tenth, and it reaches over the
    planes where its area is not negligible.

    Raises:
        InputError: if the file cannot be read, is not three-dimensional, or holds values that
            are not finite or all the same.

    Reference:
        Smith 2002, Human Brain Mapping 17:143-155, "Estimation of basic image parameters": the
        robust range is percentiles 2 to 98, and the head lies above a tenth of it.
    """
    image = _header(Path(path))
    image = nib.as_closest_canonical(nib.Nifti1Image(_voxels(image, path), image.affine))
    voxels = image.get_fdata(dtype=np.float32)
    low, high = np.percentile(voxels, (2, 98))
    if low == high:
        low, high = voxels.min(), voxels.max()
    head = voxels > low + 0.1 * (high - low)
    top = np.percentile(voxels[head], 99)
    area = head.sum(axis=(0, 1))
    planes = np.flatnonzero(area >= LEAST_AREA * area.max())[[0, -1]]
    centre = [*(np.array(image.shape[:2]) - 1) / 2, 0, 1]
    bottom = float((image.affine @ centre)[2])
    spacing = tuple(float(side) for side in nib.affines.voxel_sizes(image.affine))
    return Volume(
        name=str(path),
        voxels=np.clip((voxels - low) / (top - low), 0, 1, dtype=np.float32),
        spacing=spacing,
        bottom_mm=bottom,
        head_mm=tuple(bottom + spacing[2] * float(plane) for plane in planes),
    )


def axial_slices(
    volume: Volume,
    count: int,
    size: tuple[int, int],
    positions: tuple[float, float] = (0.0, 1.0),
    positions_mm: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts evenly spaced axial slices, interpolated linearly, in a frame of square pixels.

    A pixel is 1 mm, or as much more as the volume's whole field needs to fit into the frame;
    the field lies centred in the frame, and what is outside it is zero.

    Args:
        volume: from `read_volume`.
        count: number of slices; a single one lies in the middle of the range.
        size: rows and cols of a slice.
        positions: the lowest and the highest slice, as fractions of the head's height.
        positions_mm: the same as world z in mm; where given, it counts.

    Returns:
        Positions as fractions of the head's height, float64 of shape (count,), and slices,
        uint8 of shape (count, rows, cols).

    Raises:
        InputError: if the range reaches beyond the head.
    """
    bottom, top = volume.head_mm
    low, high = positions_mm or (min(bottom + p * (top - bottom), top) for p in positions)
    if not bottom <= low <= high <= top:
        raise InputError(
            f"The positions must lie within the head of {volume.name}, {bottom:g} to {top:g} mm, "
            f"the lower one first. Received: {low:g} to {high:g} mm."
        )
    heights = np.linspace(low, high, count) if count > 1 else np.array([(low + high) / 2])
    planes = _planes(volume, heights)
    slices = np.stack([_framed(plane, volume.spacing[:2], size) for plane in planes])
    fractions = (heights - bottom) / (top - bottom) if top > bottom else np.full(count, 0.5)
    return fractions, np.rint(slices * 255).astype(np.uint8)


def _header(path: Path) -> nib.spatialimages.SpatialImage:
    """The image, three-dimensional, its voxels not yet read."""
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        image = nib.load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise ValueError(f"it is a {type(image).__name__}, no volume")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    _refuse_turned_analyze(path, image)
    image = nib.funcs.squeeze_image(image)
    if image.ndim != 3 or min(image.shape) < 2:
        raise InputError(
            f"{path} must hold one three-dimensional volume. Received: shape {image.shape}. "
            "Save the volume you want, for example `nibabel.four_to_three(image)[0]`, by itself."
        )
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise InputError(f"{path} has a header whose affine cannot be inverted. Repair its sform.")
    return image


def _refuse_turned_analyze(path: Path, image: nib.spatialimages.SpatialImage) -> None:
    """Analyze's `orient` 1 to 5 says coronal, sagittal or flipped; nibabel overlooks it."""
    if isinstance(image, nib.Nifti1Pair) or not isinstance(image, nib.AnalyzeImage):
        return
    orient = image.header["orient"].item()
    if orient in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InputError(
            f"{path} is stored in another order than transverse unflipped (Analyze orient "
            f"{orient[0]}, expected 0). Convert it to NIfTI with the right orientation."
        )


def _voxels(image: nib.spatialimages.SpatialImage, path: str | Path) -> np.ndarray:
    """The voxels as float32, scaled by the header, checked."""
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(
            f"{path} must hold grey values. Received: data type {image.get_data_dtype()}. Convert "
            "it to a volume of one number per voxel."
        )
    try:
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    broken = voxels.size - np.count_nonzero(np.isfinite(voxels))
    if broken:
        raise InputError(
            f"{path} holds {broken} voxels that are NaN or infinite. Replace them, for example by "
            "`numpy.nan_to_num`, or leave the volume out."
        )
    if voxels.min() == voxels.max():
        raise InputError(
            f"{path} holds the value {voxels.flat[0]:g} everywhere: there is no head in it. "
            "Fetch or convert it again, or leave it out."
        )
    return voxels


def _planes(volume: Volume, heights: np.ndarray) -> np.ndarray:
    """Voxels at the heights, float32 of shape (heights, x, y)."""
    last = volume.voxels.shape[2] - 1
    plane = np.clip((heights - volume.bottom_mm) / volume.spacing[2], 0, last)
    below = np.minimum(np.floor(plane).astype(int), last - 1)
    share = (plane - below).astype(np.float32)
    planes = volume.voxels[..., below] * (1 - share) + volume.voxels[..., below + 1] * share
    return np.moveaxis(planes, 2, 0)


def _framed(plane: np.ndarray, spacing: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """The plane at the middle of a frame of square pixels."""
    sides, shape, size = np.array(spacing), np.array(plane.shape), np.array(size)
    pixel = max(PIXEL_MM, *(shape * sides / size))
    step = pixel / sides
    if (step > 1).any():
        # The usual guard against aliasing, as in skimage.transform.resize.
        plane = ndimage.gaussian_filter(plane, np.maximum(step - 1, 0) / 2)
    offset = (shape - 1) / 2 - step * (size - 1) / 2
    return ndimage.affine_transform(plane, step, offset, tuple(size), order=1)


def _unreadable(path: str | Path, error: Exception) -> InputError:
    reason = str(error) or type(error).__name__
    return InputError(
        f"{path} is no readable volume ({reason}). It may be cut short, or an .img or .hdr may "
        "lack its partner; fetch it again or leave it out."
    )
