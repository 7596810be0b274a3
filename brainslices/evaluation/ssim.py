"""Batched structural similarity, differentiable: a training metric and a loss.

The same index as scikit-image's with a Gaussian window (sigma 1.5, population covariance,
data range 1), in pure `keras.ops` and always in float32: in half precision its variances,
differences of nearly equal numbers, are noise.
"""

import numpy as np
from keras import ops

from brainslices.data.archive import FOREGROUND_THRESHOLD
from brainslices.errors import InputError
from brainslices.evaluation.pooling import C1, C2, RADIUS, SIGMA, SMALLEST_SIDE
from brainslices.keras_setup import runs_on_cpu
from brainslices.types import Tensor

__all__ = ["SMALLEST_SIDE", "ssim_map", "ssim_scores"]


def ssim_map(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Compute structural similarity at every pixel.

    Differentiable with finite gradients everywhere, flat patches included. Agrees with
    scikit-image to 1e-4 at every pixel, borders included (mirrored with the edge repeated).

    Args:
        originals: floating tensor of shape (batch, rows, cols, 1), intensities in [0, 1].
        reconstructions: likewise. Not clipped: a loss needs the gradient outside [0, 1] too.

    Returns:
        float32 tensor of shape (batch, rows, cols, 1), at most 1.

    Raises:
        InputError: if the shapes differ, are not (batch, rows, cols, 1), or a side is shorter
            than the window of 11 pixels.

    Reference:
        Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment", equation 13.
    """
    _check_shapes(originals, reconstructions)
    first = ops.squeeze(ops.cast(originals, "float32"), axis=-1)
    second = ops.squeeze(ops.cast(reconstructions, "float32"), axis=-1)
    # With s = x + y and d = x - y the index needs four moments instead of five, and is exactly 1
    # where x = y. The variance ignores an offset: s - 1 halves the rounding of E[s^2] - E[s]^2.
    signals = ops.concatenate([first + second - 1.0, first - second], axis=0)
    moments = _window_mean(ops.concatenate([signals, ops.square(signals)], axis=0))
    mean_s, mean_d, square_s, square_d = ops.split(moments, 4, axis=0)
    variance_s = ops.maximum(square_s - ops.square(mean_s), 0.0)
    variance_d = ops.maximum(square_d - ops.square(mean_d), 0.0)
    luminance = _ratio(ops.square(mean_s + 1.0), ops.square(mean_d), C1)
    structure = _ratio(variance_s, variance_d, C2)
    return ops.expand_dims(luminance * structure, axis=-1)


def ssim_scores(originals: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean structural similarity of each image and of its foreground.

    Args:
        originals: as in `ssim_map`.
        reconstructions: as in `ssim_map`.

    Returns:
        `ssim`, float32 tensor of shape (batch,): the map's mean without its outer 5 pixels, where
        the window leaves the image, as in scikit-image; one minus it is a loss.
        `ssim_foreground`, of the same shape: the map's mean where the original exceeds
        `FOREGROUND_THRESHOLD`. An image without foreground scores 0 with no gradient, where the
        reported score (`brainslices.evaluation.image_metrics`) is NaN and left out of the means.
    """
    similarity, inner = ssim_map(originals, reconstructions), slice(RADIUS, -RADIUS)
    foreground = ops.cast(ops.cast(originals, "float32") > FOREGROUND_THRESHOLD, "float32")
    total = ops.sum(similarity * foreground, axis=(1, 2, 3))
    return (
        ops.mean(similarity[:, inner, inner, 0], axis=(1, 2)),
        total / ops.maximum(ops.sum(foreground, axis=(1, 2, 3)), 1.0),
    )


def _ratio(of_sum, of_difference, constant):
    """(2 x y + c) / (x^2 + y^2 + c) of equation 13, from the moments of x + y and x - y."""
    half_sum, half_difference = 0.5 * of_sum, 0.5 * of_difference
    return (half_sum - half_difference + constant) / (half_sum + half_difference + constant)


def _window_mean(images):
    """Gaussian-weighted mean around each pixel of float32 (n, rows, cols), borders mirrored."""
    if runs_on_cpu():
        return _window_mean_by_matrices(images)
    return _window_mean_by_shifts(images)


def _window_mean_by_matrices(images):
    """As two banded matrix products: on a CPU 2 to 10 times as fast as convolutions."""
    rows, cols = ops.shape(images)[1:3]
    return ops.matmul(_window_matrix(rows), ops.matmul(images, ops.transpose(_window_matrix(cols))))


def _window_mean_by_shifts(images):
    """As weighted sums of shifted images: products on a GPU round to TensorFloat-32."""
    rows, cols = ops.shape(images)[1:3]
    weights = _window_weights()
    padding = [[0, 0], [RADIUS, RADIUS], [RADIUS, RADIUS]]
    padded = ops.pad(images, padding, mode="symmetric")
    padded = sum(float(weight) * padded[:, k : k + rows] for k, weight in enumerate(weights))
    return sum(float(weight) * padded[:, :, k : k + cols] for k, weight in enumerate(weights))


def _window_matrix(size):
    """float32 (size, size): row i holds the weights of pixel i's window.

    A mirrored pixel adds its weight to the one it repeats: weight k of the padded row falls on
    j = i + k, on -1 - j left of the image and on 2 size - 1 - j right of it.
    """
    one_sided = np.append(_window_weights()[RADIUS:], 0.0).astype("float32")
    indices = ops.arange(size, dtype="int32")
    row, column = ops.expand_dims(indices, 1), ops.expand_dims(indices, 0)
    distances = (row - column, row + column + 1, 2 * size - 1 - row - column)
    return sum(
        ops.take(one_sided, ops.minimum(ops.abs(distance), RADIUS + 1)) for distance in distances
    )


def _window_weights():
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    return weights / weights.sum()


def _check_shapes(originals, reconstructions):
    shapes = tuple(originals.shape), tuple(reconstructions.shape)
    for name, shape in zip(("originals", "reconstructions"), shapes, strict=True):
        if len(shape) != 4 or shape[-1] != 1:
            raise InputError(
                f"`{name}` must have the shape (batch, rows, cols, 1). Received: shape {shape}."
            )
        if any(side is not None and side < SMALLEST_SIDE for side in shape[1:3]):
            raise InputError(
                f"`{name}` must be at least {SMALLEST_SIDE} pixels per side, the width of the SSIM "
                f"window. Received: shape {shape}."
            )
    if any(None not in sides and sides[0] != sides[1] for sides in zip(*shapes, strict=True)):
        raise InputError(
            "`originals` and `reconstructions` must have the same shape. Received: "
            f"{shapes[0]} and {shapes[1]}."
        )
