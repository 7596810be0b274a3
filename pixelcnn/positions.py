"""Slice positions: those that the data states, and estimates for images that come without one."""

import logging

import numpy as np

from brainslices.compilation import compiled
from brainslices.data.batches import in_batches
from brainslices.data.slices import Slices
from brainslices.progress import track
from pixelcnn.sampling import BATCH_SIZE
from pixelcnn.slice_prior import SlicePrior
from pixelcnn.surprise import stack_images

__all__ = ["estimate_positions", "slice_positions"]

logger = logging.getLogger(__name__)


def slice_positions(prior: SlicePrior, slices: Slices, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the positions of slices, estimated where their data states none.

    Args:
        prior: a prior; its decoder must have `encode_to_codes`.
        slices: the slices, as `open_slices` returns them.
        batch_size: slices at a time.

    Returns:
        float32 array of shape (n,), in [0, 1].
    """
    positions = slices.positions
    (unknown,) = np.nonzero(np.isnan(positions))
    if len(unknown):
        codes = in_batches(
            lambda rows: prior.decoder.encode_to_codes(stack_images(slices, rows)),
            batch_size,
            "encoding",
            unknown,
        )
        positions[unknown] = estimate_positions(prior, codes, batch_size)
        logger.warning(
            "%d images of %s have no slice position. The likeliest under the prior are taken, "
            "%.2f to %.2f; a --table with the columns file and position states them.",
            len(unknown),
            slices.path,
            positions[unknown].min(),
            positions[unknown].max(),
        )
    return positions


def estimate_positions(
    prior: SlicePrior, codes: np.ndarray, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Estimate the slice positions of code grids by maximum likelihood, with unknown conditions.

    Args:
        prior: the prior; its `candidate_positions` are compared.
        codes: int array of shape (n, r, c).
        batch_size: grids at a time.

    Returns:
        float32 array of shape (n,), in [0, 1].
    """
    candidates = prior.provenance.candidate_positions.astype("float32")
    log_prob = compiled(prior.model.log_prob, prior.model)
    likelihoods = []
    for position in track(candidates, len(candidates), "estimating positions", "positions"):
        inputs = prior.model.with_conditions(np.full(len(codes), position, "float32"))
        values = in_batches(log_prob, batch_size, None, np.asarray(codes, "int32"), inputs)
        likelihoods.append(values.sum(axis=(1, 2), dtype="float64"))
    return candidates[np.argmax(likelihoods, axis=0)]
