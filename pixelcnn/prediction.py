"""Predictions: images that a prior expects, each part given the codes before it."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from keras import ops
from scipy.ndimage import gaussian_filter

from brainslices.data.crop import CropBox
from pixelcnn.sampling import compiled
from pixelcnn.surprise import Surprise, in_batches

__all__ = ["Prediction"]

# Both chosen on validation slices: sigma of the Gaussian that smooths a difference, in pixels, and
# the intensity added to the standard deviation before it divides the difference.
SIGMA, FLOOR = 3.0, 0.03


class Prediction:
    """Difference between slices and what a prior predicts, in standard deviations of validation.

    The predicted image is decoded from the mean code vector at each place, under the prior's
    probabilities given the codes before it. Its smoothed difference to the slice is compared with
    that of the validation slices' reconstructions nearest in position.

    Args:
        reference: the prior with its validation slices.
        decoder: object with `decode_codes(codes)`, `decode_expected(probabilities)`, `crop` and
            `image_shape`, such as a `VQVAE`.
    """

    def __init__(self, reference: Surprise, decoder: Any):
        self.reference, self.decoder = reference, decoder
        self.crop = CropBox(*decoder.crop)
        self._predict = compiled(self._expected_images, reference.model)

    def _expected_images(self, codes, position):
        logits = self.reference.model({"codes": codes, "position": position})
        return self.decoder.decode_expected(ops.softmax(logits))

    def images(
        self, codes: np.ndarray, positions: np.ndarray, description: str | None = None
    ) -> np.ndarray:
        """Predict slices, cut to the crop.

        Args:
            codes: int array of shape (n, r, c).
            positions: float array of shape (n,), in [0, 1], or with conditions.
            description: label of the progress bar; None shows none.

        Returns:
            float16 array of shape (n, *crop sides), in [0, 1].
        """
        inputs = np.asarray(codes, "int32"), np.asarray(positions, "float32")
        return in_batches(
            lambda *batch: self._cut(self._predict(*batch)),
            self.reference.batch_size,
            description,
            *inputs,
        )

    def _cut(self, images):
        return self.crop.cut(np.asarray(images)[..., 0]).astype("float16")

    @cached_property
    def _reference_differences(self):
        codes, size = self.reference.codes, self.reference.batch_size
        decoded = in_batches(
            lambda batch: self._cut(self.decoder.decode_codes(batch)), size, None, codes
        )
        predicted = self.images(codes, self.reference.positions, "validation predictions")
        return _smooth(decoded, predicted)

    def maps(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        codes: np.ndarray,
        positions: np.ndarray,
        subjects: Sequence[str] | np.ndarray,
        description: str | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the map of each slice, float32 of shape (rows, cols), 0 outside of the crop.

        Args:
            images: sequence of float32 arrays of shape (rows, cols), in [0, 1].
            codes: int array of shape (n, r, c), the codes of the images.
            positions: float array of shape (n,), in [0, 1], or with conditions.
            subjects: subject of each slice; its own validation slices are not compared with.
            description: label of the progress bar; None shows none.
        """
        predicted = self.images(codes, positions, description)
        neighbours = self.reference.neighbours(positions, subjects)
        for row, near in enumerate(neighbours):
            original = self.crop.cut(np.asarray(images[row])[np.newaxis])
            expected = self._reference_differences[near]
            difference = _smooth(original, predicted[row : row + 1]) - expected.mean(axis=0)
            deviations = np.abs(difference) / (expected.std(axis=0) + FLOOR)
            yield self.crop.paste(deviations, self.decoder.image_shape)[0]


def _smooth(images, predicted):
    return gaussian_filter(images.astype("float32") - predicted, (0, SIGMA, SIGMA))
