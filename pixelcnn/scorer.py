"""A trained prior with its validation slices: surprise maps and restoration maps of images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from brainslices.data.batches import in_batches
from brainslices.data.code_grids import CodeGrids
from brainslices.data.crop import CropBox
from brainslices.data.subject_table import SubjectTable
from brainslices.errors import InputError
from pixelcnn.conditions import add_subjects
from pixelcnn.prediction import Prediction
from pixelcnn.restoration import MASKED_QUANTILE, restoration_map, restore
from pixelcnn.sampling import BATCH_SIZE, MASKED, Sampler
from pixelcnn.slice_prior import SlicePrior
from pixelcnn.surprise import Surprise, spread_over_pixels, stack_images

__all__ = ["Scored", "Scorer"]


@dataclass(frozen=True, eq=False)
class Scored:
    """Slices under a prior.

    Args:
        codes: int32 array of shape (n, r, c).
        nats: float32 array of shape (n, r, c), the cost of each code.
        surprise: float32 array of shape (n, r, c), the same minus the mean cost of validation
            codes at that cell of the grid and slice position.
        percentiles: float64 array of shape (n,), of each slice's cost among validation slices near
            its position, 0 to 100.
    """

    codes: np.ndarray
    nats: np.ndarray
    surprise: np.ndarray
    percentiles: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        """Bits of each slice, float64 array of shape (n,)."""
        return self.nats.sum(axis=(1, 2), dtype="float64") / math.log(2)


class Scorer:
    """A trained prior with its validation slices.

    Args:
        prior: the prior; its decoder must have `encode_to_codes`, `crop` and `image_shape`, as a
            `VQVAE` has.
        grids: code grids of the decoder, whose split `validate` is compared with.
        table: attributes of the validation subjects, for a prior with conditions.
        batch_size: slices at a time.

    Raises:
        InputError: if the code grids are of another VQ-VAE.

    Example:
        >>> prior = SlicePrior.from_run("runs/prior")  # doctest: +SKIP
        >>> grids = CodeGrids.load("runs/vqvae/code_grids.npz")  # doctest: +SKIP
        >>> scorer = Scorer(prior, grids)  # doctest: +SKIP
        >>> scored = scorer(images, np.full(len(images), 0.5))  # doctest: +SKIP
        >>> maps = scorer.maps(scored.surprise)  # doctest: +SKIP
    """

    def __init__(
        self,
        prior: SlicePrior,
        grids: CodeGrids,
        table: SubjectTable | None = None,
        batch_size: int = BATCH_SIZE,
    ):
        expected = prior.provenance.metadata["vqvae_hash"]
        if grids.vqvae_hash != expected or "validate" not in grids.splits:
            raise InputError(
                "`codes` must be the code grids that the prior was trained on, of the VQ-VAE "
                f"{expected[:12]}. Received: those of {grids.vqvae_hash[:12]} ({grids.vqvae_run}), "
                f"splits {', '.join(grids.splits)}. Run encode_codes.py on the prior's VQ-VAE."
            )
        self.prior, self.decoder, self.batch_size = prior, prior.decoder, batch_size
        split = grids.splits["validate"]
        positions = self.with_conditions(split.positions, table, split.subjects)
        self.reference = Surprise(prior.model, split.codes, positions, split.subjects, batch_size)

    def with_conditions(
        self,
        positions: np.ndarray,
        table: SubjectTable | None,
        subjects: Sequence[str] | np.ndarray,
    ) -> np.ndarray:
        """Add the attributes of the subjects to positions, for a prior with conditions."""
        return add_subjects(self.prior.model.condition_variables, positions, table or {}, subjects)

    def __call__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        positions: np.ndarray,
        subjects: Sequence[str] | np.ndarray | None = None,
        silent: bool = False,
    ) -> Scored:
        """Score slices.

        Args:
            images: sequence of float32 arrays of shape (rows, cols), in [0, 1].
            positions: float array of shape (n,), in [0, 1], or with conditions.
            subjects: subject of each slice; its own validation slices are not compared with,
                unless there is no other subject.
            silent: show no progress bars.
        """
        subjects = np.full(len(images), "") if subjects is None else np.asarray(subjects)
        codes = in_batches(
            lambda rows: self.decoder.encode_to_codes(stack_images(images, rows)),
            self.batch_size,
            None if silent else "encoding",
            np.arange(len(images)),
        )
        nats = self.reference.nats(codes, positions, None if silent else "scoring")
        return Scored(codes, nats, *self.reference.compare(nats, positions, subjects))

    def maps(self, values: np.ndarray) -> np.ndarray:
        """Spread values of codes (n, r, c) over the pixels of the images (n, rows, cols)."""
        crop = CropBox(*self.decoder.crop)
        return spread_over_pixels(values, crop, self.decoder.image_shape)

    @cached_property
    def threshold(self) -> float:
        """Surprise above which codes are resampled: a quantile of that of validation codes."""
        return float(np.quantile(self.reference.reference_surprise, MASKED_QUANTILE))

    @cached_property
    def prediction(self) -> Prediction:
        """Maps of the difference between slices and what the prior predicts."""
        return Prediction(self.prior.model, self.decoder, self.batch_size)

    @cached_property
    def _sampler(self):
        return Sampler(self.prior.model)

    def restoration_maps(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        positions: np.ndarray,
        scored: Scored,
        count: int,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Resample the surprising codes of slices, and compare the images with the originals.

        Args:
            images: as in a call.
            positions: as in a call.
            scored: what the call returned.
            count: restorations of each slice.
            seed: seed of the samples.

        Yields:
            For each slice its `restoration_map`, float32 array of shape (rows, cols).
        """
        observed = np.where(scored.surprise > self.threshold, MASKED, scored.codes)
        restored = restore(
            self._sampler, self.decoder, observed, positions, count, seed, self.batch_size
        )
        for row, restorations in enumerate(restored):
            yield restoration_map(images[row], restorations)

    def most_surprising_pixels(self, surprise: np.ndarray) -> np.ndarray:
        """Return the pixel (row, col) in the centre of each slice's most surprising code."""
        top, left, *sides = self.decoder.crop
        shape, flat = surprise.shape[1:], surprise.reshape(len(surprise), -1)
        cells = np.column_stack(np.unravel_index(flat.argmax(axis=1), shape))
        return ((cells + 0.5) * sides / shape + (top, left)).astype(int)
