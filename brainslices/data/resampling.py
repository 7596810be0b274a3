"""Resample planes and images to square pixels in a frame."""

import numpy as np

__all__ = ["resample"]


def resample(
    plane: np.ndarray, spacing: tuple[float, float], size: tuple[int, int], pixel: float
) -> np.ndarray:
    """Resample a plane linearly to square pixels, centred in a zero-padded frame.

    Args:
        plane: float32 of shape (rows, cols).
        spacing: sides of its pixels, in any unit.
        size: (rows, cols) of the frame; a larger plane is cut.
        pixel: side of the new pixels, in the same unit.

    Returns:
        float32 of shape `size`.
    """
    from scipy import ndimage

    step, shape, frame = pixel / np.array(spacing), np.array(plane.shape), np.array(size)
    if (step > 1).any():
        # Anti-aliasing filter as in skimage.transform.resize.
        plane = ndimage.gaussian_filter(plane, np.maximum(step - 1, 0) / 2)
    offset = (shape - 1) / 2 - step * (frame - 1) / 2
    return ndimage.affine_transform(plane, step, offset, size, order=1)
