"""The SSIM window and the block means that several metrics share."""

import numpy as np

__all__ = ["C1", "C2", "RADIUS", "SIGMA", "SMALLEST_SIDE", "cell_means", "halve"]

SIGMA = 1.5
RADIUS = 5  # int(3.5 * SIGMA + 0.5): where scikit-image truncates its Gaussian
SMALLEST_SIDE = 2 * RADIUS + 1
# (k1 * data range)^2 and (k2 * data range)^2. Reference: Wang et al. 2004, equations 7 and 9.
C1, C2 = 0.01**2, 0.03**2


def halve(image: np.ndarray) -> np.ndarray:
    """Average an image (rows, cols) over 2 x 2 blocks; an odd side's last line is repeated.

    Example:
        >>> halve(np.array([[0.0, 2.0, 4.0], [2.0, 4.0, 6.0]]))
        array([[2., 5.]])
    """
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)), mode="edge")
    return image.reshape(-(-rows // 2), 2, -(-cols // 2), 2).mean(axis=(1, 3))


def cell_means(images: np.ndarray, cells: int) -> np.ndarray:
    """Average images over a grid of cells x cells parts of nearly equal size.

    Args:
        images: float array of shape (n, rows, cols) or (n, rows, cols, channels).
        cells: number of cells along the rows and along the columns.

    Returns:
        Array of shape (n, cells, cells) or (n, cells, cells, channels).
    """
    for axis in (1, 2):
        size = images.shape[axis]
        starts = np.arange(cells) * size // cells
        shape = [cells if dimension == axis else 1 for dimension in range(images.ndim)]
        widths = np.diff(np.append(starts, size)).reshape(shape)
        images = np.add.reduceat(images, starts, axis=axis) / widths
    return images
