"""Vector quantisation: nearest-code search, gradient codebook and EMA codebook.

Where the equations of van den Oord et al. 2017 (arXiv 1711.00937) are, for latents z and codes e:

    k = argmin_j |z - e_j|^2                           eq. 1   nearest_codes
    z_q = e_k                                          eq. 2   VectorQuantizer.call
    |sg[z] - e|^2 + commitment_cost * |z - sg[e]|^2    eq. 3   VectorQuantizer._loss
    e = discounted sum of z / discounted count of z    A.1     VectorQuantizerEMA._update_codebook
    a code that no latent chooses restarts             -       ._restart_dead_codes
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from brainslices.distributed.collectives import all_gather, all_reduce_sum, run_on_primary
from brainslices.types import Tensor

__all__ = ["VectorQuantizer", "VectorQuantizerEMA", "nearest_codes", "rotate_to"]

# Scores per block of latents: 2**22 float32 values are 16 MiB. TensorFlow may compute ten blocks
# in parallel.
SCORE_BLOCK = 2**22
# Keeps divisions and norms finite; far below the norm of any trained code.
EPSILON = 1e-6
KMEANS_ITERATIONS = 10
# The EMA discount at step t is at most t / (t + DECAY_WARMUP).
DECAY_WARMUP = 9.0


def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code (Euclidean distance) of each latent.

    The search runs in blocks of `SCORE_BLOCK` scores: for large n, an array of shape
    (n, num_embeddings) never exists as a whole.

    Args:
        latents: float32 tensor of shape (n, embedding_dim).
        codebook: float32 tensor of shape (num_embeddings, embedding_dim).

    Returns:
        int32 tensor of shape (n,), values in [0, num_embeddings). Ties go to the lowest index.

    Example:
        >>> latents = np.array([[0.9], [0.1]], "float32")
        >>> codebook = np.array([[0.0], [1.0]], "float32")
        >>> np.asarray(nearest_codes(latents, codebook)).tolist()
        [1, 0]
    """

    def search(block):
        return ops.cast(ops.argmax(_code_scores(block, codebook), -1), "int32")

    count = ops.shape(latents)[0]
    max_block_size = max(1, SCORE_BLOCK // codebook.shape[0])
    if isinstance(count, int) and count <= max_block_size:
        return search(latents)
    block_count = (count + max_block_size - 1) // max_block_size
    block_size = (count + block_count - 1) // block_count
    offsets = ops.arange(block_size)

    def search_block(index):
        # Past the end the last latent is repeated; the result is cut to `count` below.
        rows = ops.minimum(index * block_size + offsets, count - 1)
        return search(ops.take(latents, rows, axis=0))

    return ops.reshape(ops.map(search_block, ops.arange(block_count)), (-1,))[:count]


def _code_scores(latents, codebook):
    """Return scores (n, num_embeddings), each latent's highest for its nearest code."""
    # argmin |z - e|^2 = argmax (z . e - |e|^2 / 2), as |z|^2 is the same for all codes.
    half_norms = 0.5 * ops.sum(ops.square(codebook), axis=-1)
    return ops.matmul(latents, ops.transpose(codebook)) - half_norms


def rotate_to(latents: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` with the gradient of the rotation that maps `latents` onto it.

    Args:
        latents: float32 tensor of shape (n, embedding_dim).
        quantized: float32 tensor of the same shape, the nearest codes.

    Returns:
        float32 tensor equal to `quantized` up to float32 rounding.

    Reference:
        Fifty et al. 2024, arXiv 2410.06424, section 4.2: q = lambda R e, with lambda R constant.
    """

    def dot(x, y):
        return ops.sum(x * y, axis=-1, keepdims=True)

    detached, quantized = ops.stop_gradient(latents), ops.stop_gradient(quantized)
    latent_unit, code_unit = _to_unit_norm(detached), _to_unit_norm(quantized)
    bisector = _to_unit_norm(latent_unit + code_unit)
    rotated = (
        latents - 2 * dot(latents, bisector) * bisector + 2 * dot(latents, latent_unit) * code_unit
    )
    scale = ops.norm(quantized, axis=-1, keepdims=True) / (
        ops.norm(detached, axis=-1, keepdims=True) + EPSILON
    )
    scaled = scale * rotated
    # The value is the code's, up to rounding; only the gradient is the rotation's.
    return scaled + ops.stop_gradient(quantized - scaled)


def _to_unit_norm(vectors):
    # Within the root: the gradient of a norm at zero is NaN.
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(squares + EPSILON**2)


@keras.saving.register_keras_serializable(package="vqvae")
class VectorQuantizer(keras.layers.Layer):
    """Replace each latent by its nearest code; the optimiser trains the codebook.

    Computes in float32 under every dtype policy. Adds the loss
    `mean((sg[z] - e)^2) + commitment_cost * mean((z - sg[e])^2)` in training and in inference.

    Args:
        num_embeddings: int, number of codes.
        embedding_dim: int, width of a code; the last axis of the input.
        commitment_cost: float, weight of the commitment loss.
        l2_normalized: bool, compare latents and codes on the unit sphere.
        rotation_trick: bool, pass gradients by rotation instead of straight through.
        seed: int, for the initial codebook and for restarts.
        **kwargs: the arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape (batch, ..., embedding_dim), the latents.
        training: bool.

    Returns:
        The code vectors, float32 of the shape of `inputs`, and their codes, int32 of shape
        (batch, ...).

    Reference:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937, equations 1-3.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float,
        l2_normalized: bool = False,
        rotation_trick: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.l2_normalized = l2_normalized
        self.rotation_trick = rotation_trick
        self.seed = seed

    def build(self, input_shape):
        self.input_spec = keras.layers.InputSpec(
            min_ndim=2, axes={-1: self.embedding_dim}, dtype="float32"
        )
        # Uniform within 1 / num_embeddings, as in Sonnet: codes start close together.
        limit = 1.0 / self.num_embeddings
        initializer = keras.initializers.RandomUniform(-limit, limit, seed=self.seed)
        self._add_codebook((self.num_embeddings, self.embedding_dim), initializer)

    def _add_codebook(self, shape, initializer):
        self.codes_weight = self.add_weight(name="codebook", shape=shape, initializer=initializer)

    @property
    def codebook(self) -> Tensor:
        """float32 tensor of shape (num_embeddings, embedding_dim)."""
        return self._normalize(self.codes_weight)

    def call(self, inputs, training=False):
        latents = self._normalize(ops.reshape(inputs, (-1, self.embedding_dim)))
        codebook = self.codebook
        codes = nearest_codes(ops.stop_gradient(latents), ops.stop_gradient(codebook))
        quantized = ops.take(codebook, codes, axis=0)
        if training and self.trainable:
            self._update_codebook(ops.stop_gradient(latents), codes, quantized)
        # After the update, in which replicas wait for each other: they share one list of losses.
        self.add_loss(self._loss(latents, quantized))
        shape = ops.shape(inputs)
        return (
            ops.reshape(self._pass_gradient(latents, quantized), shape),
            ops.reshape(codes, shape[:-1]),
        )

    def _normalize(self, vectors):
        return _to_unit_norm(vectors) if self.l2_normalized else ops.convert_to_tensor(vectors)

    def _loss(self, latents, quantized):
        codebook_loss = ops.mean(ops.square(ops.stop_gradient(latents) - quantized))
        return codebook_loss + self._commitment_loss(latents, quantized)

    def _commitment_loss(self, latents, quantized):
        return self.commitment_cost * ops.mean(ops.square(latents - ops.stop_gradient(quantized)))

    def _pass_gradient(self, latents, quantized):
        if self.rotation_trick:
            return rotate_to(latents, quantized)
        return latents + ops.stop_gradient(quantized - latents)  # straight-through estimator

    def _update_codebook(self, latents, codes, quantized):
        """Do nothing: the optimiser updates a gradient codebook."""

    def to_codes(self, latents: Tensor) -> Tensor:
        """Return the int32 codes (batch, ...) of latents (batch, ..., embedding_dim)."""
        codes = nearest_codes(self._flatten(latents), self.codebook)
        return ops.reshape(codes, ops.shape(latents)[:-1])

    def scores(self, latents: Tensor) -> Tensor:
        """Return float32 scores (batch, ..., num_embeddings), highest for the nearest code."""
        scores = _code_scores(self._flatten(latents), self.codebook)
        return ops.reshape(scores, (-1, *latents.shape[1:-1], self.num_embeddings))

    def _flatten(self, latents):
        flat = ops.reshape(ops.cast(latents, "float32"), (-1, self.embedding_dim))
        return self._normalize(flat)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the float32 code vectors (batch, ..., embedding_dim) of codes (batch, ...)."""
        # TensorFlow cannot take by uint16, the type of stored codes.
        return ops.take(self.codebook, ops.cast(codes, "int32"), axis=0)

    def initialize_codebook(self, latents: np.ndarray) -> None:
        """Set the codes to the k-means centres of latents.

        Args:
            latents: float32 array of shape (n, embedding_dim), n at least num_embeddings.
        """
        # On process 0 alone: the latents of the processes may differ in the last bit.
        self._assign_codebook(run_on_primary(self._kmeans_centres, latents))

    def _kmeans_centres(self, latents):
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        latents = np.asarray(self._normalize(ops.convert_to_tensor(latents)))
        options = {"n_init": 1, "max_iter": KMEANS_ITERATIONS, "random_state": self.seed}
        # Several threads add up in an order that differs between runs.
        with threadpool_limits(limits=1):
            return KMeans(self.num_embeddings, **options).fit(latents).cluster_centers_

    def _assign_codebook(self, centres):
        self.codes_weight.assign(centres)

    def compute_output_shape(self, input_shape):
        return input_shape, input_shape[:-1]

    def get_config(self):
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "commitment_cost": self.commitment_cost,
            "l2_normalized": self.l2_normalized,
            "rotation_trick": self.rotation_trick,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="vqvae")
class VectorQuantizerEMA(VectorQuantizer):
    """Vector quantiser whose codes are exponential moving averages of the latents assigned to them.

    Stores two states, the discounted count and the discounted sum of each code's latents, and
    derives the codebook from them, so that they cannot disagree. In training each call quantises
    with the old codebook, then updates it; frozen (`trainable = False`) or in inference nothing
    changes. Where devices share a batch, the states are those of the whole batch and equal on all
    devices. A code whose count falls below `restart_threshold` is dead and restarts at a latent of
    the batch.

    Args:
        num_embeddings: int, number of codes.
        embedding_dim: int, width of a code.
        commitment_cost: float, weight of the commitment loss, which is the only loss.
        decay: float in [0, 1), discount of the two states at each step.
        restart_threshold: float, latents per step below which a code is dead; 0 disables restarts.
        **kwargs: the other arguments of `VectorQuantizer`.

    Reference:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937, appendix A.1.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float,
        decay: float,
        restart_threshold: float,
        **kwargs: Any,
    ):
        super().__init__(num_embeddings, embedding_dim, commitment_cost, **kwargs)
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def _add_codebook(self, shape, initializer):
        state = {"trainable": False, "autocast": False, "dtype": "float32"}
        # Counts of one and sums at the codes: codebook == sum / count holds before any step.
        self.ema_count = self.add_weight(
            name="ema_count", shape=shape[:1], initializer="ones", **state
        )
        self.ema_sum = self.add_weight(
            name="ema_sum", shape=shape, initializer=initializer, **state
        )
        self.steps = self.add_weight(name="steps", shape=(), initializer="zeros", **state)

    @property
    def codebook(self) -> Tensor:
        """float32 tensor of shape (num_embeddings, embedding_dim)."""
        return self._normalize(self.ema_sum / self.ema_count[:, None])

    def _loss(self, latents, quantized):
        return self._commitment_loss(latents, quantized)

    def _update_codebook(self, latents, codes, quantized):
        ones = ops.ones_like(latents[:, 0])
        batch_count = all_reduce_sum(ops.segment_sum(ones, codes, self.num_embeddings))
        batch_sum = all_reduce_sum(ops.segment_sum(latents, codes, self.num_embeddings))
        # The latents move fast at first: average over few steps then, as TensorFlow's
        # ExponentialMovingAverage does with `num_updates`.
        steps = self.steps + 1.0
        # Never exactly zero, or an idle code would lose its vector.
        decay = ops.clip(steps / (steps + DECAY_WARMUP), EPSILON, max(self.decay, EPSILON))
        ema_count = decay * self.ema_count + (1 - decay) * batch_count
        ema_sum = decay * self.ema_sum + (1 - decay) * batch_sum
        # An idle code keeps its vector while both states shrink. After about 8,700 idle steps at
        # decay 0.99 float32 would lose both: they are held above the smallest useful count.
        scale = ops.maximum(1.0, EPSILON / ema_count)
        ema_count, ema_sum = ema_count * scale, ema_sum * scale[:, None]
        if self.restart_threshold > 0:
            ema_count, ema_sum = self._restart_dead_codes(ema_count, ema_sum, latents, quantized)
        self.ema_count.assign(ema_count)
        self.ema_sum.assign(ema_sum)
        self.steps.assign(steps)

    def _restart_dead_codes(self, ema_count, ema_sum, latents, quantized):
        """Move each dead code to a latent of the batch and return the new states.

        Latents are sampled in proportion to their squared distance from their code, as k-means++
        seeds.
        """
        distances = ops.sum(ops.square(latents - ops.stop_gradient(quantized)), axis=-1)
        distances, latents = all_gather(distances), all_gather(latents)
        cumulative = ops.cumsum(distances)
        noise = keras.random.uniform((self.num_embeddings,), seed=self.seed_generator)
        rows = ops.searchsorted(cumulative, noise * cumulative[-1])
        sampled = ops.take(latents, ops.minimum(rows, ops.shape(latents)[0] - 1), axis=0)
        is_dead = ema_count < self.restart_threshold
        # Twice the threshold: a restarted code has log(2) / (1 - decay) steps to win latents.
        start = 2.0 * self.restart_threshold
        return (
            ops.where(is_dead, start, ema_count),
            ops.where(is_dead[:, None], start * sampled, ema_sum),
        )

    def _assign_codebook(self, centres):
        self.ema_count.assign(ops.ones(self.ema_count.shape))
        self.ema_sum.assign(centres)

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "restart_threshold": self.restart_threshold,
        }
