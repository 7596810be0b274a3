"""Codebook usage and perplexity, counted over the epoch and not averaged over batches."""

from typing import Any

import keras
from keras import ops

from brainslices.types import Tensor

__all__ = ["CodebookPerplexity", "CodebookUsage"]


class _CodeCounts(keras.metrics.Metric):
    """Count how often each code occurs; a subclass turns the counts into a result."""

    def __init__(self, num_embeddings: int, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.num_embeddings = num_embeddings
        self.counts = self.add_variable((num_embeddings,), initializer="zeros", name="counts")

    def update_state(self, codes: Tensor, sample_weight: None = None) -> None:
        """Count int codes of any shape, with values in [0, num_embeddings)."""
        codes = ops.reshape(codes, (-1,))
        ones = ops.ones_like(codes, dtype="float32")
        self.counts.assign_add(ops.segment_sum(ones, codes, self.num_embeddings))


class CodebookUsage(_CodeCounts):
    """Share of the codes that occur at least once, in [0, 1]."""

    def result(self) -> Tensor:
        """Return the share, a float32 scalar."""
        return ops.mean(ops.cast(self.counts > 0, "float32"))


class CodebookPerplexity(_CodeCounts):
    """Exponential of the entropy of the code frequencies.

    1 if a single code occurs, num_embeddings if all occur equally often.
    """

    def result(self) -> Tensor:
        """Return the perplexity, a float32 scalar."""
        share = self.counts / ops.maximum(ops.sum(self.counts), 1.0)
        return ops.exp(-ops.sum(share * ops.log(share + 1e-10)))
