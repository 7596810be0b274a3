"""Inpainting of an image with a hidden part: its observed codes, and their decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brainslices.data.crop import CropBox
from brainslices.data.images import check_intensities
from brainslices.errors import InputError
from brainslices.types import Tensor

if TYPE_CHECKING:
    from vqvae.model import VQVAE

__all__ = ["Inpainting"]

# Two values in [0, 1] that stand in for the hidden part: black and mid-grey.
FILL_VALUES = (0.0, 0.5)


class Inpainting:
    """An image with a hidden part that a prior fills in.

    Args:
        model: the VQ-VAE.
        image: float array in [0, 1] or uint8 array, of shape (rows, cols) or (rows, cols, 1), of
            the model's image size.
        hidden: (top, left, rows, cols) of the hidden part, in pixels; or a bool array of shape
            (rows, cols), true where hidden; None for the lower half.

    Attributes:
        image: float32 array of shape (rows, cols), in [0, 1].
        hidden: (top, left, rows, cols) of the hidden part, or of the box around it.
        mask: bool array of shape (rows, cols), true where hidden.

    Raises:
        InputError: if the image has another size or range, or the hidden part is empty or not
            inside it.
    """

    def __init__(
        self,
        model: VQVAE,
        image: np.ndarray,
        hidden: tuple[int, int, int, int] | np.ndarray | None = None,
    ):
        rows, cols = model.image_shape
        if image.shape not in ((rows, cols), (rows, cols, 1)):
            raise InputError(
                f"`image` must have the {rows} x {cols} pixels (rows x cols) that the model was "
                f"trained on. Received: image.shape={image.shape}."
            )
        if isinstance(hidden, np.ndarray):
            self.hidden = _bounding_box(hidden, (rows, cols))
        else:
            self.hidden = hidden or (rows // 2, 0, rows - rows // 2, cols)
        top, left, height, width = self.hidden
        is_inside = top >= 0 and left >= 0 and top + height <= rows and left + width <= cols
        if not is_inside or min(height, width) < 1:
            raise InputError(
                f"`hidden` must be a non-empty part of the image of {rows} x {cols} pixels. "
                f"Received: hidden={self.hidden} (top, left, rows, cols)."
            )
        if image.dtype != np.uint8:
            check_intensities("image", image)
        full_scale = 255 if image.dtype == np.uint8 else 1
        self.model = model
        self.image = image.reshape(rows, cols).astype("float32") / full_scale
        self.mask = np.zeros((rows, cols), bool)
        window = np.s_[top : top + height, left : left + width]
        self.mask[window] = hidden[window] if isinstance(hidden, np.ndarray) else True

    def observed_codes(self, masked: int) -> np.ndarray:
        """Return the codes that do not depend on the hidden part.

        The image is encoded once for each of `FILL_VALUES` in the hidden part, so that no hidden
        pixel can leak. Codes that differ between the two are masked, and so are the codes of the
        hidden part and their neighbours.

        Args:
            masked: value of a code that is not observed.

        Returns:
            int32 array of shape (r, c).

        Raises:
            InputError: if the hidden part lies outside the crop, so that no code is masked.
        """
        filled = np.stack([self.image] * len(FILL_VALUES))
        for image, value in zip(filled, FILL_VALUES, strict=True):
            image[self.mask] = value
        black, grey = np.array(self.model.encode_to_codes(filled[..., None]), "int32")
        codes = np.where(black == grey, black, masked)
        crop = CropBox(*self.model.crop)
        touching_rows, touching_cols = (
            _touches(side, count)
            for side, count in zip((crop.rows, crop.cols), codes.shape, strict=True)
        )
        hidden_codes = touching_rows @ crop.cut(self.mask[None])[0] @ touching_cols.T
        if not hidden_codes.any():
            raise InputError(
                f"`hidden` must overlap the part that the model encodes: {crop.rows} x {crop.cols} "
                f"pixels from ({crop.top}, {crop.left}). Received: hidden={self.hidden} (top, "
                "left, rows, cols)."
            )
        codes[hidden_codes] = masked
        return codes

    def decode(self, codes: Tensor) -> np.ndarray:
        """Decode code grids into the hidden part; observed pixels stay those of the image.

        Args:
            codes: int array of shape (batch, r, c).

        Returns:
            float32 array of shape (batch, rows, cols, 1), in [0, 1].
        """
        decoded = np.asarray(self.model.decode_codes(codes))
        return np.where(self.mask[..., None], decoded, self.image[..., None])


def _bounding_box(mask, shape):
    """Return (top, left, rows, cols) of the true part of a mask; its sides are 0 if it has none."""
    if mask.shape != shape or mask.dtype != bool:
        raise InputError(
            f"`hidden` must be a box, or a bool array of the image's shape {shape}. Received: "
            f"{mask.dtype} array of shape {mask.shape}."
        )
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    top, left = int(rows[0]), int(cols[0])
    return top, left, int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left


def _touches(side, count):
    """Return which codes along an axis overlap a pixel, or are next to one that does.

    Returns:
        Bool array of shape (count, side), for `count` codes on `side` pixels.
    """
    pixel, code = np.arange(side) * count, np.arange(count)[:, None] * side
    return (code - side < pixel + count) & (code + 2 * side > pixel)
