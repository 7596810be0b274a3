"""Crop boxes: the part of a slice that a model codes."""

from dataclasses import dataclass

import numpy as np

from brainslices.errors import InputError

__all__ = ["CropBox"]


@dataclass(frozen=True)
class CropBox:
    """A window of a picture, in pixels; it may overhang the picture.

    Args:
        top: first row, negative where the box begins above the picture.
        left: first column, likewise.
        rows: height.
        cols: width.
    """

    top: int
    left: int
    rows: int
    cols: int

    def cut(self, images: np.ndarray) -> np.ndarray:
        """Cuts the box out of pictures; what lies outside them is zero.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels).

        Returns:
            New array of the same type and rank, of the box's rows and cols.
        """
        picture, box = self.windows(images.shape[1:3])
        cut = np.zeros((len(images), self.rows, self.cols, *images.shape[3:]), images.dtype)
        cut[box] = images[picture]
        return cut

    def paste(self, images: np.ndarray, source_shape: tuple[int, int]) -> np.ndarray:
        """Puts cut pictures back where they came from, zeros around them: the inverse of `cut`.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels), rows and cols
                those of the box.
            source_shape: rows and cols of the pictures the box was cut from.

        Returns:
            New array of the same type and rank, of the source's rows and cols.
        """
        if images.shape[1:3] != (self.rows, self.cols):
            raise InputError(
                f"Pictures to paste must have the crop box's shape ({self.rows}, {self.cols}). "
                f"Received: images.shape={images.shape}."
            )
        picture, box = self.windows(source_shape)
        pasted = np.zeros((len(images), *source_shape, *images.shape[3:]), images.dtype)
        pasted[picture] = images[box]
        return pasted

    def windows(self, shape: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where pictures and box meet: indices (all, rows, cols) into pictures and into cuts.

        Args:
            shape: rows and cols of the pictures.
        """
        picture, box = [slice(None)], [slice(None)]
        spans = (self.top, self.rows, shape[0]), (self.left, self.cols, shape[1])
        for start, length, size in spans:
            low, high = max(start, 0), max(min(start + length, size), max(start, 0))
            picture.append(slice(low, high))
            box.append(slice(low - start, high - start))
        return tuple(picture), tuple(box)
