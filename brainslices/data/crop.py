"""Crop boxes: the part of a slice that a model encodes."""

from dataclasses import dataclass

import numpy as np

from brainslices.errors import InputError

__all__ = ["CropBox"]


@dataclass(frozen=True)
class CropBox:
    """A window of an image, in pixels; it may extend beyond the image.

    Args:
        top: first row; negative if the box starts above the image.
        left: first column; negative if the box starts to the left of the image.
        rows: number of rows.
        cols: number of columns.

    Example:
        >>> box = CropBox(top=-1, left=1, rows=2, cols=2)
        >>> box.cut(np.array([[[1, 2, 3], [4, 5, 6]]])).tolist()
        [[[0, 0], [2, 3]]]
    """

    top: int
    left: int
    rows: int
    cols: int

    def cut(self, images: np.ndarray) -> np.ndarray:
        """Cut the box out of images, zero-padded where it extends beyond them.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels).

        Returns:
            New array of the same dtype and rank, with the rows and cols of the box.
        """
        image_window, box_window = self.windows(images.shape[1:3])
        cut = np.zeros((len(images), self.rows, self.cols, *images.shape[3:]), images.dtype)
        cut[box_window] = images[image_window]
        return cut

    def paste(self, images: np.ndarray, source_shape: tuple[int, int]) -> np.ndarray:
        """Paste cropped images back into zero-filled frames: the inverse of `cut`.

        Args:
            images: array of shape (n, rows, cols) or (n, rows, cols, channels), with the rows
                and cols of the box.
            source_shape: (rows, cols) of the images that the box was cut from.

        Returns:
            New array of the same dtype and rank, with the source's rows and cols.

        Raises:
            InputError: if the images do not have the shape of the box.
        """
        if images.shape[1:3] != (self.rows, self.cols):
            raise InputError(
                f"`images` must have the shape ({self.rows}, {self.cols}) of the crop box. "
                f"Received: images.shape={images.shape}."
            )
        image_window, box_window = self.windows(source_shape)
        pasted = np.zeros((len(images), *source_shape, *images.shape[3:]), images.dtype)
        pasted[image_window] = images[box_window]
        return pasted

    def windows(self, shape: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the overlap of images and box, as an index into each.

        Args:
            shape: (rows, cols) of the images.

        Returns:
            Index (all, rows, cols) into the images, and the same into their crops.
        """
        image_window, box_window = [slice(None)], [slice(None)]
        spans = (self.top, self.rows, shape[0]), (self.left, self.cols, shape[1])
        for start, length, size in spans:
            low, high = max(start, 0), max(min(start + length, size), max(start, 0))
            image_window.append(slice(low, high))
            box_window.append(slice(low - start, high - start))
        return tuple(image_window), tuple(box_window)
