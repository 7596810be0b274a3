"""Surprise: cost of codes under a prior, relative to validation codes of the same grid cell."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from scipy.stats import percentileofscore
from skimage.transform import resize

from brainslices.compilation import compiled
from brainslices.data.batches import in_batches
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import BATCH_SIZE

__all__ = [
    "MIN_NEIGHBOURS",
    "Surprise",
    "nearest_positions",
    "spread_over_pixels",
    "stack_images",
]

# The fewest validation slices that a slice is compared with.
MIN_NEIGHBOURS = 30


class Surprise:
    """Likelihood of code grids under a prior, relative to validation slices of nearby position.

    The surprise of a code is its nats minus the mean nats of the codes of the same grid cell in the
    validation slices nearest in position. Those of the slice's own subject are left out, unless
    there is no other subject.

    Args:
        model: a built `PixelCNN`.
        codes: int array of shape (n, r, c), the codes of the validation slices.
        positions: float array of shape (n,), in [0, 1], or with conditions.
        subjects: str array of shape (n,).
        batch_size: grids at a time.

    Raises:
        InputError: if there are no validation slices.
    """

    def __init__(
        self,
        model: PixelCNN,
        codes: np.ndarray,
        positions: np.ndarray,
        subjects: np.ndarray,
        batch_size: int = BATCH_SIZE,
    ):
        if not len(codes):
            raise InputError("`codes` must hold at least one validation slice. Received: none.")
        self.model, self.batch_size = model, batch_size
        self._log_prob = compiled(model.log_prob, model)
        self.positions, self.subjects = np.asarray(positions, "float32"), np.asarray(subjects)
        self.reference_nats = self.nats(codes, positions, "validation slices")

    def nats(
        self, codes: np.ndarray, positions: np.ndarray, description: str | None = None
    ) -> np.ndarray:
        """Compute the nats of each code given the codes before it.

        Args:
            codes: int array of shape (n, r, c).
            positions: float array of shape (n,), in [0, 1], or with conditions.
            description: label of the progress bar; None shows none.

        Returns:
            float32 array of shape (n, r, c).
        """
        return -in_batches(
            self._log_prob,
            self.batch_size,
            description,
            np.asarray(codes, "int32"),
            np.asarray(positions, "float32"),
        )

    def compare(
        self, nats: np.ndarray, positions: np.ndarray, subjects: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare slices with the validation slices near their positions.

        Args:
            nats: float32 array of shape (n, r, c), as `nats` returns it.
            positions: float array of shape (n,), in [0, 1], or with conditions.
            subjects: str array of shape (n,).

        Returns:
            Surprise of each code, float32 array of shape (n, r, c); and percentile of each slice's
            nats among those of the validation slices, float64 array of shape (n,), 0 to 100.
        """
        surprise, percentiles = np.empty_like(nats), np.empty(len(nats))
        reference = self.reference_nats.mean(axis=(1, 2))
        for row, near in enumerate(self.neighbours(positions, subjects)):
            surprise[row] = nats[row] - self.reference_nats[near].mean(axis=0)
            percentiles[row] = percentileofscore(reference[near], nats[row].mean(), kind="mean")
        return surprise, percentiles

    def neighbours(
        self, positions: np.ndarray, subjects: Sequence[str] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield, for each slice, the validation slices that it is compared with, as row numbers."""
        own = _slice_positions(self.positions)
        for position, subject in zip(_slice_positions(positions), subjects, strict=True):
            others = self.subjects != subject
            (allowed,) = np.nonzero(others if others.any() else ~others)
            yield allowed[nearest_positions(own[allowed], position)]

    @cached_property
    def reference_surprise(self) -> np.ndarray:
        """Surprise of the validation slices' codes, float32 array of shape (n, r, c)."""
        return self.compare(self.reference_nats, self.positions, self.subjects)[0]


def nearest_positions(
    positions: np.ndarray, position: float, count: int = MIN_NEIGHBOURS
) -> np.ndarray:
    """Find the slices nearest in position, ties with the last one included.

    Args:
        positions: float array of shape (n,), in [0, 1].
        position: the position to compare with.
        count: least number of slices, where there are as many.

    Returns:
        int array, indices into `positions`.

    Example:
        >>> nearest_positions(np.array([0.0, 0.5, 0.5, 1.0]), 0.4, count=1).tolist()
        [1, 2]
    """
    distances = np.abs(positions - position)
    last = np.sort(distances)[min(count, len(positions)) - 1]
    return np.flatnonzero(distances <= last + 1e-6)


def spread_over_pixels(
    values: np.ndarray, crop: CropBox, image_shape: tuple[int, int]
) -> np.ndarray:
    """Spread the values of codes over the pixels of the images, bilinearly.

    Args:
        values: float array of shape (n, r, c).
        crop: the part of the images that the codes cover.
        image_shape: (rows, cols) of the images.

    Returns:
        float32 array of shape (n, rows, cols), 0 outside of the crop.
    """
    shape = (len(values), crop.rows, crop.cols)
    maps = resize(values.astype("float32"), shape, order=1, mode="edge", anti_aliasing=False)
    return crop.paste(maps.astype("float32"), image_shape)


def stack_images(images: Sequence[np.ndarray] | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Stack some images of a sequence, as an array of shape (len(rows), rows, cols, 1)."""
    return np.stack([images[row] for row in rows])[..., np.newaxis]


def _slice_positions(positions: np.ndarray) -> np.ndarray:
    """Slice positions without the conditions."""
    return np.asarray(positions).reshape(len(positions), -1)[:, 0]
