import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, normal, values
from quantizer_layers import (
    CODES,
    WIDTH,
    each_layer,
    ema_layer,
    nearest_by_brute_force,
    quantize,
)

from vqvae import quantizer as module
from vqvae.quantizer import VectorQuantizerEMA

pytestmark = pytest.mark.usefixtures("fresh_keras")


# Exponential moving averages


class ReferenceAverages:
    """EMA of appendix A.1 in float64, with the decay limited to step / (step + 9)."""

    def __init__(self, codebook, decay, steps=0):
        self.count, self.total = np.ones(len(codebook)), codebook.astype("float64")
        self.decay, self.steps = decay, steps

    @property
    def codebook(self):
        return self.total / self.count[:, None]

    def step(self, latents):
        codes = nearest_by_brute_force(latents, self.codebook)
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        for code in range(len(self.count)):
            assigned = latents[codes == code]
            self.count[code] = decay * self.count[code] + (1 - decay) * len(assigned)
            self.total[code] = decay * self.total[code] + (1 - decay) * assigned.sum(0)


def test_initial_codebook_is_the_ema_sum_over_the_count():
    layer = VectorQuantizerEMA(CODES, WIDTH, 0.25, decay=0.99, restart_threshold=0.5)
    layer.build((None, WIDTH))
    np.testing.assert_array_equal(layer.ema_count, np.ones(CODES))
    np.testing.assert_array_equal(layer.codebook, layer.ema_sum)
    assert np.abs(layer.codebook).max() <= 1 / CODES
    assert np.unique(layer.codebook).size == CODES * WIDTH


@pytest.mark.parametrize("start_step", [0, 1000], ids=["warming up", "warmed up"])
def test_ema_updates_match_the_reference(start_step):
    codebook = normal(CODES, WIDTH)
    layer, reference = ema_layer(codebook, decay=0.9), ReferenceAverages(codebook, 0.9, start_step)
    layer.steps.assign(start_step)
    for step in range(3):
        latents = normal(200, WIDTH, seed=step)
        quantized = quantize(layer, latents, training=True)
        expected = reference.codebook[nearest_by_brute_force(latents, reference.codebook)]
        # The output is of the codebook before the update.
        np.testing.assert_allclose(quantized, expected, atol=1e-5)
        reference.step(latents)
        np.testing.assert_allclose(layer.codebook, reference.codebook, atol=1e-5)
        np.testing.assert_allclose(layer.ema_count, reference.count, rtol=1e-5)
    assert float(layer.steps) == start_step + 3


def test_codes_at_decay_0_are_the_means_of_their_latents():
    latents, codebook = normal(200, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_by_brute_force(latents, codebook)
    layer = ema_layer(codebook, decay=0.0)
    quantize(layer, latents, training=True)
    expected = [latents[codes == code].mean(0) for code in range(CODES)]
    np.testing.assert_allclose(layer.codebook, expected, atol=1e-5)


def test_unused_code_at_decay_0_is_finite():
    codebook = np.eye(CODES, WIDTH, dtype="float32")
    layer = ema_layer(codebook, decay=0.0)
    for _ in range(2):
        quantize(layer, codebook[:1], training=True)
    assert np.isfinite(layer.codebook).all()


def test_unused_code_keeps_its_vector():
    tf = pytest.importorskip("tensorflow")
    codebook = np.array([[1.0, -2.0], [100.0, 300.0]], "float32")
    layer = ema_layer(codebook, decay=0.99)
    latents, codes = tf.constant([[2.0, -1.0]]), tf.constant([0])

    @tf.function
    def update(steps):
        for _ in tf.range(steps):
            layer._update_codebook(latents, codes, latents)

    update(20_000)
    np.testing.assert_allclose(layer.codebook[1], codebook[1], rtol=1e-4)
    np.testing.assert_allclose(layer.codebook[0], latents[0], rtol=1e-4)
    assert float(layer.ema_count[1]) > 0


def test_long_unused_code_moves_to_its_next_latents():
    codebook = np.array([[0.0, 0.0], [100.0, 100.0]], "float32")
    layer = ema_layer(codebook, decay=0.99)
    layer.ema_count.assign([1.0, module.EPSILON])
    layer.ema_sum.assign(codebook * np.array([[1.0], [module.EPSILON]], "float32"))
    quantize(layer, np.full((4, 2), 90.0, "float32"), training=True)
    np.testing.assert_allclose(layer.codebook[1], [90, 90], rtol=1e-4)


# Restarts of dead codes


def layer_with_dead_code(**changes):
    codebook = np.concatenate([normal(CODES - 1, WIDTH), np.full((1, WIDTH), 1e3, "float32")])
    layer = ema_layer(codebook, decay=0.99, **changes)
    layer.steps.assign(1000)
    count = np.array([5.0] * (CODES - 1) + [0.3], "float32")
    layer.ema_count.assign(count)
    layer.ema_sum.assign(codebook * count[:, None])
    return layer


def test_dead_code_restarts_at_a_latent_without_changing_live_ones():
    latents = normal(50, WIDTH, seed=1)
    restarting = layer_with_dead_code(restart_threshold=0.5)
    without_restarts = layer_with_dead_code(restart_threshold=0.0)
    for layer in (restarting, without_restarts):
        quantize(layer, latents, training=True)
    restarted = np.asarray(restarting.codebook)[-1]
    assert np.abs(latents - restarted).max(-1).min() < 1e-6
    assert float(restarting.ema_count[-1]) == 1.0
    np.testing.assert_array_equal(restarting.codebook[:-1], without_restarts.codebook[:-1])
    np.testing.assert_array_equal(restarting.ema_count[:-1], without_restarts.ema_count[:-1])
    np.testing.assert_allclose(without_restarts.codebook[-1], 1e3, rtol=1e-5)


def test_restarts_depend_on_the_seed():
    latents, restarted = normal(500, WIDTH, seed=1), {}
    for seed in (1, 1, 2, 3):
        layer = layer_with_dead_code(restart_threshold=0.5, seed=seed)
        quantize(layer, latents, training=True)
        code = np.asarray(layer.codebook)[-1]
        np.testing.assert_array_equal(code, restarted.setdefault(seed, code))
    assert len(np.unique(np.stack(list(restarted.values())), axis=0)) > 1


def test_restarts_prefer_latents_of_large_quantisation_error():
    latents = np.zeros((100, WIDTH), "float32")
    latents[37] = 50.0
    for seed in range(5):
        layer = layer_with_dead_code(restart_threshold=0.5, seed=seed)
        quantize(layer, latents, training=True)
        np.testing.assert_array_equal(layer.codebook[-1], latents[37])


def test_no_restarts_in_inference_or_when_frozen():
    layer = layer_with_dead_code(restart_threshold=0.5)
    before = values(layer.variables)
    layer.trainable = False
    count = len(layer.weights)
    quantize(layer, normal(50, WIDTH), training=True)
    layer.trainable = True
    quantize(layer, normal(50, WIDTH), training=False)
    assert_bit_equal(before[:count], values(layer.weights))
    initial = keras.random.SeedGenerator(layer.seed)
    np.testing.assert_array_equal(layer.seed_generator.state, initial.state)


# Initialisation by k-means


@each_layer
def test_kmeans_recovers_well_separated_clusters(make_layer):
    centers = 10 * np.eye(CODES, WIDTH, dtype="float32")
    centers[WIDTH:] = -10 * np.eye(CODES - WIDTH, WIDTH)
    clusters = centers[:, None] + 0.1 * normal(CODES, 30, WIDTH)
    layer = make_layer()
    layer.initialize_codebook(clusters.reshape(-1, WIDTH))
    codebook = np.asarray(layer.codebook)
    nearest = np.asarray(layer.to_codes(clusters.mean(1)))
    assert sorted(nearest) == list(range(CODES))
    np.testing.assert_allclose(codebook[nearest], clusters.mean(1), atol=1e-4)


def test_kmeans_resets_counts_and_sums():
    layer = ema_layer()
    quantize(layer, normal(50, WIDTH), training=True)
    layer.initialize_codebook(normal(100, WIDTH))
    np.testing.assert_array_equal(layer.ema_count, np.ones(CODES))
    np.testing.assert_array_equal(layer.codebook, layer.ema_sum)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty", "ignore:invalid value")
def test_kmeans_of_fewer_distinct_latents_than_codes_is_finite():
    layer = ema_layer()
    layer.initialize_codebook(np.repeat(normal(2, WIDTH), 20, axis=0))
    assert np.isfinite(layer.codebook).all()
