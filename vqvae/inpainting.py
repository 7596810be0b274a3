"""A slice of which a part is hidden: what is known of its code grid, and its decoding."""

import numpy as np

from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from vqvae.model import VQVAE

__all__ = ["Inpainting"]

# What the hidden part is painted with, in [0, 1].
FILL_VALUES = (0.0, 0.5)


class Inpainting:
    """A picture of which a part is to be made anew.

    Args:
        model: the VQ-VAE.
        picture: uint8 array of shape (rows, cols), of the model's picture size.
        hidden: (top, left, rows, cols) of the part to make anew, in pixels; None for the lower
            half.

    Raises:
        InputError: if the picture is of another size, or the hidden part not inside it or empty.
    """

    def __init__(
        self,
        model: VQVAE,
        picture: np.ndarray,
        hidden: tuple[int, int, int, int] | None = None,
    ):
        shape = model.image_shape
        if picture.shape != shape:
            raise InputError(
                f"The picture to complete has {picture.shape[0]} x {picture.shape[1]} pixels (rows "
                f"x cols), but the model takes {shape[0]} x {shape[1]}. Give one of that size."
            )
        top, left, rows, cols = hidden or (shape[0] // 2, 0, shape[0] - shape[0] // 2, shape[1])
        inside = top >= 0 and left >= 0 and top + rows <= shape[0] and left + cols <= shape[1]
        if not inside or min(rows, cols) < 1:
            raise InputError(
                f"`hidden` must be a part of the picture of {shape[0]} x {shape[1]} pixels. "
                f"Received: hidden={hidden} (top, left, rows, cols)."
            )
        self.model, self.picture = model, picture.astype("float32") / 255
        self.hidden = (top, left, rows, cols)
        self.window = (slice(top, top + rows), slice(left, left + cols))

    def observed_codes(self, unknown: int) -> np.ndarray:
        """The codes that do not depend on the hidden part.

        That part is painted over before the picture is encoded, so that nothing of it can leak:
        once black and once grey. Codes that differ between the two, and those of the part and next
        to it, count as unknown.

        Args:
            unknown: what stands for a code that is not known.

        Returns:
            int32 array of shape (r, c).

        Raises:
            InputError: if no code is left to make anew: the hidden part lies outside of the crop.
        """
        painted = np.stack([self.picture] * len(FILL_VALUES))
        for picture, paint in zip(painted, FILL_VALUES, strict=True):
            picture[self.window] = paint
        black, grey = np.array(self.model.encode_to_codes(painted[..., None]), "int32")
        codes = np.where(black == grey, black, unknown)
        crop = CropBox(*self.model.crop)
        touched = np.ix_(
            _touched(self.window[0], crop.top, crop.rows, codes.shape[0]),
            _touched(self.window[1], crop.left, crop.cols, codes.shape[1]),
        )
        if not codes[touched].size:
            raise InputError(
                f"The hidden part lies outside of what the model codes, {crop.rows} x {crop.cols} "
                f"pixels from ({crop.top}, {crop.left}) on. Give a --hidden that reaches into it."
            )
        codes[touched] = unknown
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Completed pictures, with the picture's own pixels where they are known.

        Args:
            codes: int array of shape (batch, r, c).

        Returns:
            float32 array of shape (batch, rows, cols, 1), in [0, 1].
        """
        decoded = np.asarray(self.model.decode_codes(codes))
        completed = np.broadcast_to(self.picture[..., None], decoded.shape).copy()
        completed[:, *self.window] = decoded[:, *self.window]
        return completed


def _touched(span, start, side, cells):
    """Cells along one axis of the crop that share a pixel with a span, or lie next to such."""
    first, last = ((edge - start) * cells / side for edge in (span.start, span.stop))
    numbers = np.arange(cells)
    (inside,) = np.nonzero((numbers < last) & (numbers + 1 > first))
    return numbers[max(0, inside[0] - 1) : inside[-1] + 2] if len(inside) else inside
