"""The intensity range of a volume, and its outside."""

import numpy as np
from scipy import ndimage

from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["INTENSITY_RULE", "fill_outside"]

INTENSITY_RULE = (
    "per volume: percentile 2 becomes 0, percentile 99 of the head's voxels 255, linear between, "
    "clipped; for percentile 2, voxels outside do not count if they are padding, or brighter than "
    "the darkest tissue"
)
# Share of the volume's border with one value, at least: of padding, and of the outside of a mask.
PADDING_SHARE, MASK_SHARE = 0.05, 0.5
# Padding, such as -1024 or 32767, is above percentile 98 or, if negative, below the air by at least
# this share of the range from air to percentile 98.
PADDING_GAP = 0.4
# Air is not negative, except for this share of percentile 98 ...
ZERO_TOLERANCE = 0.1
# ... or in CT, where it is near this number of Hounsfield units.
CT_AIR, CT_TOLERANCE = -1000, 150


def fill_outside(voxels: np.ndarray, path: PathLike) -> tuple[np.ndarray, float, float]:
    """Give the outside of a head the dark end of the range, whatever its value is.

    The outside is NaN or infinite, or a constant of the volume's border that lies within the range
    of the other voxels (0 around a z-scored head) or far below it (padding of -1024). In all other
    volumes the air or the masked outside is the dark end already.

    Args:
        voxels: float32 of shape (x, y, z).
        path: file of the volume, for messages.

    Returns:
        Finite voxels, and percentiles 2 and 98 of the range.

    Raises:
        InputError: if voxels inside the head are NaN or infinite, or all of them are equal.
    """
    is_invalid = ~np.isfinite(voxels)
    outside = _touching_border(is_invalid) if is_invalid.any() else is_invalid
    invalid = np.count_nonzero(is_invalid & ~outside)
    if invalid:
        raise InputError(
            f"{path} holds {invalid} voxels inside the head that are NaN or infinite. Replace them,"
            " for example by `numpy.nan_to_num`, or remove the volume."
        )
    if outside.all():
        raise _no_head(path, "NaN or infinity")
    if constants := _outside_constants(voxels):
        outside = outside | _touching_border(np.isin(voxels, constants))
    inside = voxels[~outside] if outside.any() else voxels
    low, high = np.percentile(inside, (2, 98))
    if low == high:
        low, high = inside.min(), inside.max()
    if low == high:
        raise _no_head(path, f"the value {low:g}")
    return np.where(outside, np.float32(low), voxels) if outside.any() else voxels, low, high


def _no_head(path: PathLike, value: str) -> InputError:
    return InputError(
        f"{path} holds {value} in every voxel: it shows no head. Download or convert it again, or "
        "remove it."
    )


def _outside_constants(voxels: np.ndarray) -> list[float]:
    """Values of the border that are outside but not the dark end of the range."""
    faces = np.concatenate([np.take(voxels, (0, -1), axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces[np.isfinite(faces)], return_counts=True)
    shares = counts / faces.size
    constants = values[shares >= PADDING_SHARE]
    inside = voxels[np.isfinite(voxels) & ~np.isin(voxels, constants)]
    if not inside.size or not constants.size:
        return []
    dark, bright = np.percentile(inside, (2, 98))
    masked = (shares >= MASK_SHARE) & (values > dark)
    is_ct_air = np.abs(constants - CT_AIR) <= CT_TOLERANCE
    is_ct_air[0] = False  # with no lower constant, it may be padding itself
    air = min([dark, *constants[(constants >= 0) | is_ct_air]])
    has_air = air >= -ZERO_TOLERANCE * bright or abs(air - CT_AIR) <= CT_TOLERANCE
    below = (values < 0) & (air - values > PADDING_GAP * (bright - air)) & has_air
    above = values - bright > PADDING_GAP * (bright - dark)
    return values[masked | ((below | above) & (shares >= PADDING_SHARE))].tolist()


def _touching_border(mask: np.ndarray) -> np.ndarray:
    """The connected regions of a mask that reach the border of the volume."""
    labels, _ = ndimage.label(mask)
    faces = [np.take(labels, (0, -1), axis).ravel() for axis in range(3)]
    return np.isin(labels, np.setdiff1d(np.concatenate(faces), 0))
