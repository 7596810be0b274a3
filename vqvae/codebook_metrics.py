"""How much of the codebook an epoch uses, counted over the epoch and not averaged over batches."""

import keras
from keras import ops

__all__ = ["CodebookPerplexity", "CodebookUsage"]


class _CodeCounts(keras.metrics.Metric):
    """Counts each code; subclasses say what the counts mean."""

    def __init__(self, num_embeddings, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.num_embeddings = num_embeddings
        self.counts = self.add_variable((num_embeddings,), initializer="zeros", name="counts")

    def update_state(self, codes, sample_weight=None):
        codes = ops.reshape(codes, (-1,))
        ones = ops.ones_like(codes, dtype="float32")
        self.counts.assign_add(ops.segment_sum(ones, codes, self.num_embeddings))


class CodebookUsage(_CodeCounts):
    """Share of the codes chosen at least once, in [0, 1]."""

    def result(self):
        return ops.mean(ops.cast(self.counts > 0, "float32"))


class CodebookPerplexity(_CodeCounts):
    """exp of the entropy of the codes' frequencies: 1 (one code) to num_embeddings (all alike)."""

    def result(self):
        share = self.counts / ops.maximum(ops.sum(self.counts), 1.0)
        return ops.exp(-ops.sum(share * ops.log(share + 1e-10)))
