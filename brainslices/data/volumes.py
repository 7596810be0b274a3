"""Axial slices of brain volumes.

Slices are oriented as in the public OASIS PNG release: rows run from the subject's left (top) to
the right, columns from the back of the head (left) to the forehead.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from brainslices.data.images import to_uint8
from brainslices.data.intensities import INTENSITY_RULE, fill_outside
from brainslices.data.resampling import resample
from brainslices.data.volume_files import load_volume
from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["INTENSITY_RULE", "Volume", "axial_slices", "read_volume"]

# The first is for human heads, the others are for fields of view that would be tiny at 1 mm.
PIXELS_MM = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
# At 1 mm, a field of view that fills less of the frame is tiny.
MIN_FRAME_SHARE = 0.25
# Planes whose head area is a smaller fraction of the largest plane's are noise.
MIN_AREA_FRACTION = 0.01
# Beyond, a header is wrong, and the frame's filter would take any amount of memory.
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.01, 100.0


@dataclass(frozen=True)
class Volume:
    """A head on a regular grid with canonical axes.

    Args:
        name: source of the volume, for messages.
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


def read_volume(path: PathLike) -> Volume:
    """Read a volume and normalise its intensities by `INTENSITY_RULE`.

    Head voxels exceed a tenth of the robust intensity range. The head extends over the planes
    where its area is at least 1 % of the largest plane's.

    Raises:
        InputError: as `load_volume` and `fill_outside`, or if a voxel is implausibly small or
            large.

    Reference:
        Smith 2002, Human Brain Mapping 17:143-155, "Estimation of basic image parameters": the
        robust range is percentiles 2 to 98, and the head lies above a tenth of it.
    """
    voxels, affine = load_volume(path)
    voxels, low, high = fill_outside(voxels, path)
    head = voxels > low + 0.1 * (high - low)
    top = np.percentile(voxels[head], 99)
    area = head.sum(axis=(0, 1))
    planes = np.flatnonzero(area >= MIN_AREA_FRACTION * area.max())[[0, -1]]
    bottom_centre = [*(np.array(voxels.shape[:2]) - 1) / 2, 0, 1]
    bottom = float((affine @ bottom_centre)[2])
    x_mm, y_mm, z_mm = map(float, nib.affines.voxel_sizes(affine))
    if not all(MIN_VOXEL_MM <= side <= MAX_VOXEL_MM for side in (x_mm, y_mm, z_mm)):
        raise InputError(
            f"{path} must have voxel sides from {MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm. Received: "
            f"{x_mm:g} x {y_mm:g} x {z_mm:g} mm. Correct its header, or remove it."
        )
    return Volume(
        name=str(path),
        voxels=np.clip((voxels - low) / (top - low), 0, 1, dtype=np.float32),
        spacing=(x_mm, y_mm, z_mm),
        bottom_mm=bottom,
        head_mm=(bottom + z_mm * float(planes[0]), bottom + z_mm * float(planes[1])),
    )


def axial_slices(
    volume: Volume,
    count: int,
    size: tuple[int, int],
    positions: tuple[float, float] = (0.0, 1.0),
    positions_mm: tuple[float, float] | None = None,
    pixel_mm: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut evenly spaced axial slices, interpolated linearly, into a frame of square pixels.

    The field of view is centred in the frame and zero-padded.

    Args:
        volume: from `read_volume`.
        count: number of slices; a single one lies in the middle of the range. A volume of one plane
            has one slice.
        size: (rows, cols) of a slice.
        positions: lowest and highest slice, as fractions of the head's height.
        positions_mm: the same as world z in mm; overrides `positions`.
        pixel_mm: side of a pixel; what does not fit into the frame is cut. By default 1 mm, or
            larger so that the field of view fits into the frame, or the smallest of `PIXELS_MM` at
            which it fits if it filled less than a quarter of the frame at 1 mm.

    Returns:
        Positions as fractions of the head's height, float64 of shape (count,), and slices,
        uint8 of shape (count, rows, cols).

    Raises:
        InputError: if the range exceeds the head.
    """
    bottom, top = volume.head_mm
    low, high = positions_mm or (min(bottom + p * (top - bottom), top) for p in positions)
    if not bottom <= low <= high <= top:
        raise InputError(
            f"The positions must lie within the head of {volume.name}, {bottom:g} to {top:g} mm, "
            f"the lower one first. Received: {low:g} to {high:g} mm."
        )
    count = 1 if volume.voxels.shape[2] == 1 else count
    z_mm = np.linspace(low, high, count) if count > 1 else np.array([(low + high) / 2])
    planes, sides = _interpolate_planes(volume, z_mm), volume.spacing[:2]
    pixel = pixel_mm or _automatic_pixel(np.array(volume.voxels.shape[:2]) * sides, size)
    slices = np.stack([resample(plane, sides, size, pixel) for plane in planes])
    fractions = (z_mm - bottom) / (top - bottom) if top > bottom else np.full(count, 0.5)
    return fractions, to_uint8(slices)


def _interpolate_planes(volume: Volume, z_mm: np.ndarray) -> np.ndarray:
    """Axial planes at world z, float32 of shape (planes, x, y)."""
    last = volume.voxels.shape[2] - 1
    plane = np.clip((z_mm - volume.bottom_mm) / volume.spacing[2], 0, last)
    below = np.minimum(np.floor(plane).astype(int), last - 1)
    weight = (plane - below).astype(np.float32)
    planes = volume.voxels[..., below] * (1 - weight) + volume.voxels[..., below + 1] * weight
    return np.moveaxis(planes, 2, 0)


def _automatic_pixel(field_mm: np.ndarray, size: tuple[int, int]) -> float:
    """Side of a pixel in mm by the field of view and the frame; see `axial_slices`."""
    fitting = float(max(field_mm / size))
    if fitting >= MIN_FRAME_SHARE:
        return max(PIXELS_MM[0], fitting)
    return min(pixel for pixel in PIXELS_MM if pixel >= fitting)
