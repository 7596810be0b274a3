"""Inpainting of an image with a hidden part: its observed codes, and their decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brainslices.data.crop import CropBox
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
        hidden: (top, left, rows, cols) of the hidden part, in pixels; None for the lower half.

    Attributes:
        image: float32 array of shape (rows, cols), in [0, 1].
        hidden: (top, left, rows, cols) of the hidden part.

    Raises:
        InputError: if the image has another size, or the hidden part is empty or not inside it.
    """

    def __init__(
        self,
        model: VQVAE,
        image: np.ndarray,
        hidden: tuple[int, int, int, int] | None = None,
    ):
        rows, cols = model.image_shape
        if image.shape not in ((rows, cols), (rows, cols, 1)):
            raise InputError(
                f"`image` must have the {rows} x {cols} pixels (rows x cols) that the model was "
                f"trained on. Received: image.shape={image.shape}."
            )
        if hidden is None:
            hidden = (rows // 2, 0, rows - rows // 2, cols)
        top, left, height, width = hidden
        is_inside = top >= 0 and left >= 0 and top + height <= rows and left + width <= cols
        if not is_inside or min(height, width) < 1:
            raise InputError(
                f"`hidden` must be a non-empty part of the image of {rows} x {cols} pixels. "
                f"Received: hidden={hidden} (top, left, rows, cols)."
            )
        full_scale = 255 if image.dtype == np.uint8 else 1
        self.model, self.hidden = model, (top, left, height, width)
        self.image = image.reshape(rows, cols).astype("float32") / full_scale
        self._window = (slice(top, top + height), slice(left, left + width))

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
            image[self._window] = value
        black, grey = np.array(self.model.encode_to_codes(filled[..., None]), "int32")
        codes = np.where(black == grey, black, masked)
        crop = CropBox(*self.model.crop)
        hidden_codes = np.ix_(
            _overlapping_codes(self._window[0], crop.top, crop.rows, codes.shape[0]),
            _overlapping_codes(self._window[1], crop.left, crop.cols, codes.shape[1]),
        )
        if not codes[hidden_codes].size:
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
        inpainted = np.broadcast_to(self.image[..., None], decoded.shape).copy()
        inpainted[:, *self._window] = decoded[:, *self._window]
        return inpainted


def _overlapping_codes(span, start, side, count):
    """Return the codes along one axis that overlap a span of pixels, with their neighbours.

    The axis has `count` codes on `side` pixels from pixel `start`.
    """
    first, last = ((edge - start) * count / side for edge in (span.start, span.stop))
    indices = np.arange(count)
    (overlapping,) = np.nonzero((indices < last) & (indices + 1 > first))
    if not len(overlapping):
        return overlapping
    return indices[max(0, overlapping[0] - 1) : overlapping[-1] + 2]
