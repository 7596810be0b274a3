"""From logits to codes: guidance, temperature, top-k, top-p, and sampling by inversion."""

import numpy as np
from keras import ops

from brainslices.errors import InputError
from brainslices.types import Tensor
from pixelcnn.conditions import UNKNOWN
from pixelcnn.model import PixelCNN

__all__ = [
    "append_unconditional",
    "apply_guidance",
    "check_sampling_options",
    "filter_logits",
    "sample_from_logits",
]

# A fraction whose product with a float32 sum rounds to less than the sum.
MAX_UNIFORM = 1 - 2**-22
# At lower temperatures the most likely code is certain anyway, and float32 may round them to 0.
MIN_TEMPERATURE = 1e-30


def append_unconditional(position: Tensor) -> Tensor:
    """Double a batch: append a copy of it with all conditions unknown.

    Args:
        position: float32 tensor of shape (batch, 1 + conditions), the slice position and then the
            conditions, as the model's input of this name.

    Returns:
        float32 tensor of shape (2 batch, 1 + conditions).
    """
    unknown = UNKNOWN * ops.ones_like(position[:, 1:])
    return ops.concatenate([position, ops.concatenate([position[:, :1], unknown], axis=1)])


def apply_guidance(logits: Tensor, guidance: float | Tensor) -> Tensor:
    """Apply classifier-free guidance: unknown + guidance * (conditional - unknown).

    Args:
        logits: float32 tensor of shape (2 batch, ..., num_embeddings), of a batch that
            `append_unconditional` made.
        guidance: 1 gives the conditional logits, 0 those of unknown conditions.

    Returns:
        float32 tensor of shape (batch, ..., num_embeddings).

    Reference:
        Ho and Salimans 2022, arXiv 2207.12598, equation 6, with guidance = 1 + w.
    """
    conditional, unknown = ops.split(logits, 2)
    return unknown + guidance * (conditional - unknown)


def filter_logits(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
    top_p: float | Tensor | None = None,
) -> Tensor:
    """Apply temperature, top-k and top-p to logits.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings).
        temperature: positive float, divides the logits; towards 0 the most likely code is certain.
        top_k: int, the number of most likely codes that are retained, ties with the last included;
            None retains all.
        top_p: float in (0, 1]; the fewest most likely codes that together reach this probability
            are retained; None retains all.

    Returns:
        float32 tensor of the same shape, at most 0, and -inf where a code is not retained.

    Reference:
        Holtzman et al. 2020, arXiv 1904.09751, section 3.1 (top-p) and 3.2 (top-k, temperature).
    """
    # At most 0, so that no temperature overflows.
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    logits = logits / ops.maximum(temperature, MIN_TEMPERATURE)
    if top_k is not None:
        threshold = ops.top_k(logits, top_k)[0][:, -1:]
        logits = ops.where(logits < threshold, -np.inf, logits)
    if top_p is not None:
        threshold = _nucleus_threshold(logits, top_p)
        logits = ops.where(logits < threshold, -np.inf, logits)
    return logits


def _nucleus_threshold(logits, top_p):
    """The smallest logit of the nucleus, (batch, 1)."""
    descending = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    probabilities = ops.softmax(descending, axis=-1)
    more_likely = ops.cumsum(probabilities, axis=-1) - probabilities
    # The most likely code is always inside, however small `top_p` is.
    is_inside = ops.logical_or(more_likely < top_p, more_likely == 0)
    return ops.min(ops.where(is_inside, descending, np.inf), axis=-1, keepdims=True)


def sample_from_logits(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample a code from each row of logits, by inversion of the cumulative probabilities.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings), at most 0, as `filter_logits`
            returns them.
        uniform: float32 tensor of shape (batch,), uniform noise in [0, 1).

    Returns:
        int32 tensor of shape (batch,).
    """
    weights = ops.exp(logits)
    cumulative = ops.cumsum(weights, axis=-1)
    is_possible = weights > 0
    total = ops.max(ops.where(is_possible, cumulative, 0.0), axis=-1)
    threshold = ops.minimum(uniform, MAX_UNIFORM) * total
    is_reached = ops.logical_and(cumulative > threshold[:, None], is_possible)
    return ops.cast(ops.argmax(ops.cast(is_reached, "int32"), axis=-1), "int32")


def check_sampling_options(
    model: PixelCNN,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: float,
) -> None:
    """Check the arguments of `filter_logits` and `apply_guidance` for a built model.

    Raises:
        InputError: if one is out of its range, or the model has no conditions to guide by.
    """
    if not 0 < temperature < np.inf:
        raise InputError(
            f"`temperature` must be a finite number above 0. Received: temperature={temperature}."
        )
    if top_k is not None and not 1 <= top_k <= model.num_embeddings:
        raise InputError(
            f"`top_k` must be from 1 to {model.num_embeddings}, the size of the codebook. "
            f"Received: top_k={top_k}."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"`top_p` must be above 0 and at most 1. Received: top_p={top_p}.")
    if not 0 <= guidance < np.inf:
        raise InputError(
            f"`guidance` must be a finite number, at least 0. Received: guidance={guidance}."
        )
    if guidance != 1 and not model.condition_variables:
        raise InputError(
            "`guidance` needs a prior with conditions (train_pixelcnn.py --conditions). "
            f"Received: guidance={guidance} for a prior without."
        )
