"""Vector quantisation: the nearest-code search, the gradient codebook and the EMA codebook."""

import keras
import numpy as np
from keras import ops

from brainslices.distributed.collectives import all_gather, all_reduce_sum, run_on_primary

__all__ = ["VectorQuantizer", "VectorQuantizerEMA", "nearest_codes", "rotate_to"]

# Scores of a block of latents: 2**22 float32 values are 16 MiB. TensorFlow may work on ten blocks
# at once.
SCORE_BLOCK = 2**22
# Keeps divisions and norms finite; far below the norm of any trained code.
EPSILON = 1e-6
KMEANS_ITERATIONS = 10
# Steps after which an EMA codebook's discount has half of its final averaging length at most.
DECAY_WARMUP = 9.0


def nearest_codes(latents, codebook):
    """Index of the nearest code of each latent, by Euclidean distance.

    The latents are searched in blocks of `SCORE_BLOCK` scores, so that nothing of shape
    (n, num_embeddings) is ever whole in memory for large n.

    Args:
        latents: float32 tensor of shape (n, embedding_dim).
        codebook: float32 tensor of shape (num_embeddings, embedding_dim).

    Returns:
        int32 tensor of shape (n,), values in [0, num_embeddings); the lowest index wins a tie.
    """
    # argmin |z - e|^2 = argmax (z . e - |e|^2 / 2): |z|^2 does not change the order.
    half_norms = 0.5 * ops.sum(ops.square(codebook), axis=-1)
    codes_by_column = ops.transpose(codebook)

    def search(rows):
        return ops.cast(ops.argmax(ops.matmul(rows, codes_by_column) - half_norms, -1), "int32")

    count = ops.shape(latents)[0]
    most = max(1, SCORE_BLOCK // codebook.shape[0])
    if isinstance(count, int) and count <= most:
        return search(latents)
    blocks = (count + most - 1) // most
    size = (count + blocks - 1) // blocks
    within = ops.arange(size)

    def search_block(block):
        return search(ops.take(latents, ops.minimum(block * size + within, count - 1), axis=0))

    return ops.reshape(ops.map(search_block, ops.arange(blocks)), (-1,))[:count]


def rotate_to(latents, quantized):
    """Return `quantized`, its gradient turned and scaled as the latents were to become codes.

    Args:
        latents: float32 tensor of shape (n, embedding_dim).
        quantized: float32 tensor of the same shape, the nearest codes.

    Returns:
        float32 tensor equal to `quantized`, to float32's rounding.

    Reference:
        Fifty et al. 2024, arXiv 2410.06424, section 4.2: q = lambda R e, with lambda R constant.
    """

    def unit(x):
        return x / (ops.norm(x, axis=-1, keepdims=True) + EPSILON)

    def dot(x, y):
        return ops.sum(x * y, axis=-1, keepdims=True)

    detached, quantized = ops.stop_gradient(latents), ops.stop_gradient(quantized)
    latent_unit, code_unit = unit(detached), unit(quantized)
    between = unit(latent_unit + code_unit)
    rotated = (
        latents - 2 * dot(latents, between) * between + 2 * dot(latents, latent_unit) * code_unit
    )
    scale = ops.norm(quantized, axis=-1, keepdims=True) / (
        ops.norm(detached, axis=-1, keepdims=True) + EPSILON
    )
    turned = scale * rotated
    # The value is the code's; only the gradient is the rotation's.
    return turned + ops.stop_gradient(quantized - turned)


@keras.saving.register_keras_serializable(package="vqvae")
class VectorQuantizer(keras.layers.Layer):
    """Replaces each latent by its nearest code; the codebook is learned by gradient.

    Always computes in float32, whatever the dtype policy. In training and in inference alike it
    adds the loss `mean((sg[z] - e)^2) + commitment_cost * mean((z - sg[e])^2)`.

    Args:
        num_embeddings: int, number of codes.
        embedding_dim: int, width of a code; the last axis of the input.
        commitment_cost: float, weight of the commitment loss.
        l2_normalized: bool, compare latents and codes on the unit sphere.
        rotation_trick: bool, pass gradients by rotation instead of straight through.
        seed: int, for the initial codebook and for restarts.

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
        num_embeddings,
        embedding_dim,
        commitment_cost,
        l2_normalized=False,
        rotation_trick=False,
        seed=0,
        **kwargs,
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
        self._add_codebook((self.num_embeddings, self.embedding_dim), self._initializer())

    def _initializer(self):
        # Uniform within 1 / num_embeddings, as in Sonnet: codes start close together.
        limit = 1.0 / self.num_embeddings
        return keras.initializers.RandomUniform(-limit, limit, seed=self.seed)

    def _add_codebook(self, shape, initializer):
        self.codes_weight = self.add_weight(name="codebook", shape=shape, initializer=initializer)

    @property
    def codebook(self):
        """float32 tensor of shape (num_embeddings, embedding_dim)."""
        return self._normalize(self.codes_weight)

    def _normalize(self, vectors):
        if not self.l2_normalized:
            return ops.convert_to_tensor(vectors)
        return vectors / (ops.norm(vectors, axis=-1, keepdims=True) + EPSILON)

    def call(self, inputs, training=False):
        latents = self._normalize(ops.reshape(inputs, (-1, self.embedding_dim)))
        codebook = self.codebook
        codes = nearest_codes(ops.stop_gradient(latents), ops.stop_gradient(codebook))
        quantized = ops.take(codebook, codes, axis=0)
        if training and self.trainable:
            self._update_codebook(ops.stop_gradient(latents), codes, quantized)
        # After the update, where replicas wait for each other: the list of losses is theirs all.
        self.add_loss(self._loss(latents, quantized))
        shape = ops.shape(inputs)
        return (
            ops.reshape(self._pass_gradient(latents, quantized), shape),
            ops.reshape(codes, shape[:-1]),
        )

    def _loss(self, latents, quantized):
        codebook_loss = ops.mean(ops.square(ops.stop_gradient(latents) - quantized))
        commitment_loss = ops.mean(ops.square(latents - ops.stop_gradient(quantized)))
        return codebook_loss + self.commitment_cost * commitment_loss

    def _pass_gradient(self, latents, quantized):
        if self.rotation_trick:
            return rotate_to(latents, quantized)
        return latents + ops.stop_gradient(quantized - latents)  # straight-through estimator

    def _update_codebook(self, latents, codes, quantized):
        """The optimiser moves a gradient codebook; nothing to do here."""

    def codes_of(self, latents):
        """Codes of latents (batch, ..., embedding_dim) as an int32 tensor (batch, ...)."""
        latents = ops.cast(latents, "float32")
        flat = self._normalize(ops.reshape(latents, (-1, self.embedding_dim)))
        return ops.reshape(nearest_codes(flat, self.codebook), ops.shape(latents)[:-1])

    def lookup(self, codes):
        """Code vectors of integer codes (batch, ...), float32 (batch, ..., embedding_dim)."""
        return ops.take(self.codebook, codes, axis=0)

    def initialize_codebook(self, latents):
        """Put the codes at the k-means centres of some latents.

        Args:
            latents: float32 array of shape (n, embedding_dim), n at least num_embeddings.
        """
        # Of several processes one decides: their latents may differ in the last bit.
        self._assign_codebook(run_on_primary(self._kmeans_centres, latents))

    def _kmeans_centres(self, latents):
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        latents = np.asarray(self._normalize(ops.convert_to_tensor(latents)))
        options = {"n_init": 1, "max_iter": KMEANS_ITERATIONS, "random_state": self.seed}
        # Several threads would add up in an order of their own each time.
        with threadpool_limits(limits=1):
            found = KMeans(self.num_embeddings, **options).fit(latents)
        return found.cluster_centers_

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
    """Vector quantiser whose codes are moving averages of the latents that chose them.

    Two states, the discounted count and the discounted sum of each code's latents, from which the
    codebook is derived: they cannot disagree. In training each call quantises with the codebook
    as it was, then updates it; frozen (`trainable = False`) or in inference it stays as it is.
    Where devices share a batch the states are those of the whole batch, and the same on all.
    A code whose count falls under `restart_threshold` is dead and starts again at a latent of the
    batch, drawn in proportion to its squared distance from its own code (as k-means++ seeds).

    Args:
        decay: float in [0, 1), discount of the two states at each step.
        restart_threshold: float, latents a step under which a code is dead; 0 turns restarts off.
        **kwargs: the arguments of `VectorQuantizer`. The loss has the commitment term alone.

    Reference:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937, appendix A.1.
    """

    def __init__(
        self, num_embeddings, embedding_dim, commitment_cost, decay, restart_threshold, **kwargs
    ):
        super().__init__(num_embeddings, embedding_dim, commitment_cost, **kwargs)
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def _add_codebook(self, shape, initializer):
        state = {"trainable": False, "autocast": False, "dtype": "float32"}
        # Counts of one and sums at the codes: before any step codebook == sum / count.
        self.ema_count = self.add_weight(
            name="ema_count", shape=shape[:1], initializer="ones", **state
        )
        self.ema_sum = self.add_weight(
            name="ema_sum", shape=shape, initializer=initializer, **state
        )
        self.steps = self.add_weight(name="steps", shape=(), initializer="zeros", **state)

    @property
    def codebook(self):
        """float32 tensor of shape (num_embeddings, embedding_dim)."""
        return self._normalize(self.ema_sum / self.ema_count[:, None])

    def _loss(self, latents, quantized):
        return self.commitment_cost * ops.mean(ops.square(latents - ops.stop_gradient(quantized)))

    def _update_codebook(self, latents, codes, quantized):
        ones = ops.ones_like(latents[:, 0])
        batch_count = all_reduce_sum(ops.segment_sum(ones, codes, self.num_embeddings))
        batch_sum = all_reduce_sum(ops.segment_sum(latents, codes, self.num_embeddings))
        # The latents move fast at first: average over few steps then, as TensorFlow's
        # ExponentialMovingAverage does with `num_updates`.
        steps = self.steps + 1.0
        # Never quite zero: an idle code would lose its place.
        decay = ops.clip(steps / (steps + DECAY_WARMUP), EPSILON, max(self.decay, EPSILON))
        count = decay * self.ema_count + (1 - decay) * batch_count
        vectors = decay * self.ema_sum + (1 - decay) * batch_sum
        # An idle code keeps its place while its count shrinks; float32 loses both after some 8,700
        # idle steps at decay 0.99, so they are held above the smallest useful count.
        scale = ops.maximum(1.0, EPSILON / count)
        count, vectors = count * scale, vectors * scale[:, None]
        if self.restart_threshold > 0:
            count, vectors = self._restart_dead(count, vectors, latents, quantized)
        self.ema_count.assign(count)
        self.ema_sum.assign(vectors)
        self.steps.assign(steps)

    def _restart_dead(self, count, vectors, latents, quantized):
        distances = ops.sum(ops.square(latents - ops.stop_gradient(quantized)), axis=-1)
        distances, latents = all_gather(distances), all_gather(latents)
        cumulative = ops.cumsum(distances)
        draws = keras.random.uniform((self.num_embeddings,), seed=self.seed_generator)
        rows = ops.searchsorted(cumulative, draws * cumulative[-1])
        fresh = ops.take(latents, ops.minimum(rows, ops.shape(latents)[0] - 1), axis=0)
        dead = count < self.restart_threshold
        # Twice the threshold: a restarted code has log(2) / (1 - decay) steps to find its latents.
        start = 2.0 * self.restart_threshold
        return ops.where(dead, start, count), ops.where(dead[:, None], start * fresh, vectors)

    def _assign_codebook(self, centres):
        self.ema_count.assign(ops.ones(self.ema_count.shape))
        self.ema_sum.assign(centres)

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "restart_threshold": self.restart_threshold,
        }
