"""Inpainting of code grids, of which some codes are observed and the others masked."""

import numpy as np

from brainslices.errors import InputError
from pixelcnn.sampling import BATCH_SIZE, MASKED, Sampler

__all__ = ["inpaint_codes", "most_likely_position"]

# Candidate grids sampled for each inpainted grid.
CANDIDATES = 8


def inpaint_codes(
    sampler: Sampler,
    observed: np.ndarray,
    position: float | np.ndarray,
    count: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> dict[str, np.ndarray]:
    """Sample the masked codes of a grid by sampling/importance resampling.

    Codes are sampled in scan order, so an observed code does not influence the masked codes before
    it. Therefore `CANDIDATES` grids are sampled for each grid to return, and resampled with weights
    proportional to the probability that each gives to the observed codes. More candidates come
    closer to the exact conditional distribution.

    Args:
        sampler: samples the candidates.
        observed: int array of shape (r, c), codes, or `MASKED`.
        position: the slice position, in [0, 1]; or an array of it and the conditions.
        count: number of grids to return.
        seed: seed of the candidates and of the resampling.
        batch_size: grids sampled at a time.

    Returns:
        What a call of `Sampler` returns, for `count` grids.

    Reference:
        Rubin 1987, sampling/importance resampling; here without replacement, by Gumbel noise on
        the log-weights, so that no candidate is returned twice.
    """
    positions = np.full((count * CANDIDATES, *np.shape(position)), position)
    candidates, evidence = _sample_candidates(sampler, observed, positions, seed, batch_size)
    noise = np.random.default_rng([seed, len(evidence)]).gumbel(size=len(evidence))
    rows = np.argsort(-(evidence + noise))[:count]
    return {name: values[rows] for name, values in candidates.items()}


def most_likely_position(
    sampler: Sampler,
    observed: np.ndarray,
    positions: np.ndarray,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Estimate the slice position of a grid by maximum likelihood of its observed codes.

    The masked codes are sampled once for each position. All of these grids share one noise, so
    that they differ only by their position.

    Args:
        sampler: samples one grid for each position.
        observed: int array of shape (r, c), codes, or `MASKED`.
        positions: float array of shape (n,), the candidate positions, in [0, 1]; or with
            conditions, of shape (n, 1 + conditions).
        seed: seed of the masked codes.
        batch_size: grids sampled at a time.

    Returns:
        One of the positions.

    Raises:
        InputError: if no code is observed.
    """
    if (observed == MASKED).all():
        raise InputError(
            "The slice position cannot be estimated: no code of the image is observed. Give "
            "`position`."
        )
    shared_noise = np.zeros(len(positions), int)
    _, evidence = _sample_candidates(sampler, observed, positions, seed, batch_size, shared_noise)
    return float(np.ravel(positions[np.argmax(evidence)])[0])


def _sample_candidates(sampler, observed, positions, seed, batch_size, noise_indices=None):
    """Sample grids around the observed codes; return those codes' log-probability too."""
    grids = np.broadcast_to(observed, (len(positions), *observed.shape))
    batches = list(sampler.batches(positions, seed, batch_size, grids, noise_indices))
    samples = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return samples, np.where(observed == MASKED, 0, samples["log_prob"]).sum(axis=(1, 2))
