"""Difference between slices and what a prior predicts, each part given the codes before it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops
from scipy.ndimage import gaussian_filter

from brainslices.compilation import compiled
from brainslices.data.batches import in_batches
from brainslices.data.crop import CropBox
from brainslices.types import Tensor
from pixelcnn.logits import sample_from_logits
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import BATCH_SIZE, uniform_noise
from pixelcnn.surprise import stack_images

__all__ = ["Prediction"]

# Chosen on validation slices: sigma of the Gaussian that smooths, in pixels; the standard deviation
# that is added to the prior's; and the reconstruction error that counts as one of them.
SIGMA, FLOOR, ERROR_SCALE = 3.0, 0.03, 0.025
# Images that measure the prior's standard deviation.
DRAWS = 4


class Prediction:
    """Maps of the difference between a slice and a prior's prediction, in standard deviations.

    The predicted image is decoded from the mean code vector of each cell, under the prior's
    probabilities given the codes before it, and the standard deviation of each pixel is that of
    images whose codes are drawn from these probabilities. Both are averaged over the slice and its
    mirror image, which the prior reads from the other side. The difference to the slice, divided by
    the standard deviation, is smoothed; to its absolute value the smoothed reconstruction error is
    added, for what no code can express.

    Args:
        model: a built `PixelCNN`.
        decoder: object with `encode_to_codes(images)`, `decode_codes(codes)`,
            `decode_expected(probabilities)`, `crop` and `image_shape`, such as a `VQVAE`.
        batch_size: slices at a time.
    """

    def __init__(self, model: PixelCNN, decoder: Any, batch_size: int = BATCH_SIZE):
        self.model, self.decoder, self.batch_size = model, decoder, batch_size
        self.crop = CropBox(*decoder.crop)
        self._noise = uniform_noise(0, range(DRAWS), model.grid_shape)
        self._moments = compiled(self._predict, model)

    def _predict(self, codes: Tensor, position: Tensor) -> Tensor:
        """Mean and variance of each pixel, of shape (batch, rows, cols, 2)."""
        logits = ops.log_softmax(self.model({"codes": codes, "position": position}))
        mean = self.decoder.decode_expected(ops.exp(logits))
        flat, shape = ops.reshape(logits, (-1, self.model.num_embeddings)), ops.shape(codes)
        variances = []
        for noise in self._noise:
            uniform = ops.reshape(ops.broadcast_to(noise, shape), (-1,))
            drawn = ops.reshape(sample_from_logits(flat, uniform), shape)
            variances.append(ops.square(self.decoder.decode_codes(drawn) - mean))
        return ops.concatenate([mean, sum(variances) / DRAWS], axis=-1)

    def maps(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        codes: np.ndarray,
        positions: np.ndarray,
        description: str | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the map of each slice, float32 of shape (rows, cols), 0 outside of the crop.

        Args:
            images: sequence of float32 arrays of shape (rows, cols), in [0, 1].
            codes: int array of shape (n, r, c), the codes of the images.
            positions: float array of shape (n,), in [0, 1], or with conditions.
            description: label of the progress bar; None shows none.
        """
        codes, positions = np.asarray(codes, "int32"), np.asarray(positions, "float32")
        cut = in_batches(
            lambda rows: self._deviations(stack_images(images, rows), codes[rows], positions[rows]),
            self.batch_size,
            description,
            np.arange(len(codes)),
        )
        for deviations in cut:
            pasted = self.crop.paste(deviations[np.newaxis], self.decoder.image_shape)
            yield pasted[0].astype("float32")

    def _deviations(self, images, codes, positions):
        """Maps of a batch, cut to the crop, in half precision because all are held."""
        # The rows of a slice run from one side of the head to the other.
        mirrored = np.asarray(self.decoder.encode_to_codes(images[:, ::-1]), "int32")
        there, back = (np.asarray(self._moments(each, positions)) for each in (codes, mirrored))
        mean, variance = np.moveaxis(self.crop.cut((there + back[:, ::-1]) / 2), -1, 0)
        error = self.crop.cut(np.abs(images - np.asarray(self.decoder.decode_codes(codes))))[..., 0]
        images = self.crop.cut(images)[..., 0]
        deviations = np.abs(_smooth((images - mean) / np.sqrt(variance + FLOOR**2)))
        return (deviations + _smooth(error) / ERROR_SCALE).astype("float16")


def _smooth(images):
    return gaussian_filter(images.astype("float32"), (0, SIGMA, SIGMA))
