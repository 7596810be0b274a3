import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, check_layer, python, values
from keras import ops

from vqvae import quantizer as module
from vqvae.codebook_metrics import CodebookPerplexity, CodebookUsage
from vqvae.quantizer import VectorQuantizer, VectorQuantizerEMA, nearest_codes, rotate_to

CODES, WIDTH = 6, 3


pytestmark = pytest.mark.usefixtures("fresh_keras")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def nearest_by_brute_force(latents, codebook):
    differences = latents[:, None].astype("float64") - codebook[None]
    return np.square(differences).sum(-1).argmin(-1)


def quantize(layer, latents, **options):
    """The code vectors alone."""
    return layer(latents, **options)[0]


def gradient_layer(codebook=None, **changes):
    layer = VectorQuantizer(CODES, WIDTH, 0.25, **changes)
    layer.build((None, WIDTH))
    layer.codes_weight.assign(normal(CODES, WIDTH) if codebook is None else codebook)
    return layer


def ema_layer(codebook=None, decay=0.9, restart_threshold=0.0, **changes):
    codebook = normal(CODES, WIDTH) if codebook is None else codebook
    layer = VectorQuantizerEMA(
        *codebook.shape, 0.25, decay=decay, restart_threshold=restart_threshold, **changes
    )
    layer.build((None, codebook.shape[1]))
    layer.ema_sum.assign(codebook)
    return layer


LAYERS = {"gradient": gradient_layer, "ema": ema_layer}
both = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


# Nearest codes


@pytest.mark.parametrize("count", [1, 99, 100, 101])
@pytest.mark.parametrize("block", [2**24, 4 * CODES, 1])
def test_nearest_codes_are_those_of_brute_force(monkeypatch, count, block):
    monkeypatch.setattr(module, "SCORE_BLOCK", block)
    latents, codebook = normal(count, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_codes(ops.convert_to_tensor(latents), ops.convert_to_tensor(codebook))
    assert keras.backend.standardize_dtype(codes.dtype) == "int32"
    np.testing.assert_array_equal(codes, nearest_by_brute_force(latents, codebook))


@pytest.mark.parametrize("block", [2**24, 4 * CODES])
def test_nearest_codes_of_an_unknown_number_of_latents(monkeypatch, block):
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(module, "SCORE_BLOCK", block)
    codebook = normal(CODES, WIDTH)

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], "float32")])
    def search(latents):
        return nearest_codes(latents, tf.constant(codebook))

    for count in (1, 4, 57):
        latents = normal(count, WIDTH, seed=count)
        np.testing.assert_array_equal(search(latents), nearest_by_brute_force(latents, codebook))


@pytest.mark.parametrize("block", [2**24, 2 * CODES])
def test_lowest_code_wins_a_tie(monkeypatch, block):
    monkeypatch.setattr(module, "SCORE_BLOCK", block)
    codebook = np.repeat(normal(CODES // 2, WIDTH), 2, axis=0)
    codes = nearest_codes(ops.convert_to_tensor(codebook), ops.convert_to_tensor(codebook))
    np.testing.assert_array_equal(codes, [0, 0, 2, 2, 4, 4])


@pytest.mark.slow
@pytest.mark.long
def test_memory_of_the_search_stays_bounded():
    """All distances at once would take 3.3 GB."""
    ran = python(
        "-c",
        """
import keras, numpy as np, pathlib, tensorflow as tf
from vqvae.quantizer import nearest_codes

def memory_mb(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

rng = np.random.default_rng(0)
latents = tf.constant(rng.standard_normal((200_000, 64), "float32"))
codebook = tf.constant(rng.standard_normal((4096, 64), "float32"))
some = rng.integers(0, len(latents), 200)
scores = latents.numpy()[some].astype("float64")[:, None] - codebook.numpy()[None]
for wrap in (lambda function: function, tf.function):
    search = wrap(lambda latents: nearest_codes(latents, codebook))
    search(latents[:10])
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory_mb("VmRSS")
    codes = np.asarray(search(latents))
    print(memory_mb("VmHWM") - before)
    assert (np.square(scores).sum(-1).argmin(-1) == codes[some]).all()
""",
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert all(float(line) < 600 for line in ran.stdout.split()), ran.stdout


# Both quantisers


@both
def test_layer_contract(make, tmp_path):
    check_layer(make(name="quantizer"), normal(2, 4, 5, WIDTH), tmp_path)


@both
def test_quantising_a_code_returns_it(make):
    layer = make()
    codebook = np.asarray(layer.codebook)
    np.testing.assert_allclose(quantize(layer, codebook), codebook, atol=1e-7)
    np.testing.assert_array_equal(layer.to_codes(codebook), np.arange(CODES))


@both
def test_lookup_of_codes_is_the_quantised_latents(make):
    layer, latents = make(), normal(2, 4, 5, WIDTH)
    codes = layer.to_codes(latents)
    assert codes.shape == (2, 4, 5)
    np.testing.assert_array_equal(
        codes, nearest_by_brute_force(latents.reshape(-1, WIDTH), layer.codebook).reshape(2, 4, 5)
    )
    np.testing.assert_allclose(quantize(layer, latents), layer.lookup(codes), atol=1e-6)


@both
def test_permuting_the_codebook_permutes_the_codes(make):
    codebook, latents = normal(CODES, WIDTH), normal(50, WIDTH, seed=1)
    order = np.random.default_rng(0).permutation(CODES)
    codes = np.asarray(make(codebook).to_codes(latents))
    permuted = np.asarray(make(codebook[order]).to_codes(latents))
    np.testing.assert_array_equal(order[permuted], codes)


@both
def test_straight_through_gradient_is_the_identity(make):
    tf = pytest.importorskip("tensorflow")
    layer, latents, weights = make(), tf.constant(normal(20, WIDTH)), normal(20, WIDTH, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(latents)
        value = tf.reduce_sum(quantize(layer, latents) * weights)
    np.testing.assert_array_equal(tape.gradient(value, latents), weights)


@both
def test_norms_do_not_affect_codes_when_l2_normalized(make):
    layer, latents = make(l2_normalized=True), normal(50, WIDTH)
    scales = np.random.default_rng(0).uniform(0.1, 10, (50, 1)).astype("float32")
    np.testing.assert_array_equal(layer.to_codes(latents), layer.to_codes(latents * scales))
    np.testing.assert_allclose(np.linalg.norm(layer.codebook, axis=-1), 1, atol=1e-5)
    units = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    expected = nearest_by_brute_force(units, np.asarray(layer.codebook))
    np.testing.assert_array_equal(layer.to_codes(latents), expected)


@both
@pytest.mark.parametrize("rotation_trick", [False, True])
def test_gradient_at_a_latent_of_zero_is_finite(make, rotation_trick):
    tf = pytest.importorskip("tensorflow")
    layer = make(l2_normalized=True, rotation_trick=rotation_trick)
    latents = tf.zeros((2, WIDTH))
    with tf.GradientTape() as tape:
        tape.watch(latents)
        value = tf.reduce_sum(quantize(layer, latents)) + sum(layer.losses)
    assert np.isfinite(tape.gradient(value, latents)).all()


@both
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies_quantise_in_float32(make, policy):
    codebook, latents = 300 * normal(CODES, WIDTH), 300 * normal(40, WIDTH, seed=1)
    keras.mixed_precision.set_dtype_policy(policy)
    layer = make(codebook)
    half = ops.cast(latents, policy.removeprefix("mixed_"))
    quantized = quantize(layer, half, training=True)
    assert keras.backend.standardize_dtype(quantized.dtype) == "float32"
    assert {variable.dtype for variable in layer.weights} <= {"float32", "uint32"}
    assert np.isfinite(layer.losses[0])  # the squares overflow float16
    rounded = np.asarray(ops.cast(half, "float32"))
    expected = codebook[nearest_by_brute_force(rounded, codebook)]
    np.testing.assert_allclose(quantized, expected, rtol=1e-6, atol=1e-4)


@both
def test_evaluation_does_not_change_the_state(make):
    layer = make()
    before = values(layer.weights)
    quantize(layer, normal(50, WIDTH, seed=1), training=False)
    assert_bit_equal(before, values(layer.weights))


@pytest.mark.slow
@both
@pytest.mark.parametrize("rotation_trick", [False, True])
def test_frozen_layer_keeps_its_state_in_fit(make, rotation_trick):
    layer = make(rotation_trick=rotation_trick)
    layer.trainable = False
    inputs = keras.Input((WIDTH,))
    model = keras.Model(
        inputs, keras.layers.Dense(1)(quantize(layer, keras.layers.Dense(WIDTH)(inputs)))
    )
    model.compile("adam", "mse")
    before, all_before = values(layer.weights), values(model.weights)
    model.fit(normal(32, WIDTH), normal(32, 1), batch_size=8, epochs=2, verbose=0)
    assert_bit_equal(before, values(layer.weights))
    moved = [(a != b).any() for a, b in zip(all_before, values(model.weights), strict=True)]
    assert sum(moved) == 4  # the two dense layers were trained


# Rotation


def reference_rotation(latent, code):
    """lambda * R of section 4.2, float64."""
    latent, code = latent.astype("float64"), code.astype("float64")
    one, other = latent / np.linalg.norm(latent), code / np.linalg.norm(code)
    between = (one + other) / np.linalg.norm(one + other)
    turn = np.eye(len(one)) - 2 * np.outer(between, between) + 2 * np.outer(other, one)
    return np.linalg.norm(code) / np.linalg.norm(latent) * turn


def test_rotation_has_the_code_as_its_value():
    latents, codes = normal(1000, WIDTH, seed=1), normal(1000, WIDTH, seed=2)
    np.testing.assert_allclose(rotate_to(latents, codes), codes, rtol=1e-5)


def test_gradient_of_the_rotation_is_lambda_r():
    tf = pytest.importorskip("tensorflow")
    latents, codes = normal(20, WIDTH, seed=1), normal(20, WIDTH, seed=2)
    weights = normal(20, WIDTH, seed=3)
    watched = tf.constant(latents)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        value = tf.reduce_sum(rotate_to(watched, tf.constant(codes)) * weights)
    expected = [
        reference_rotation(latent, code).T @ weight
        for latent, code, weight in zip(latents, codes, weights, strict=True)
    ]
    np.testing.assert_allclose(tape.gradient(value, watched), expected, rtol=1e-4, atol=1e-4)
    turned = [reference_rotation(*pair) @ pair[0] for pair in zip(latents, codes, strict=True)]
    np.testing.assert_allclose(turned, codes, atol=1e-6)  # the reference itself


@both
def test_layer_with_the_rotation_trick_rotates(make):
    tf = pytest.importorskip("tensorflow")
    layer, latents = make(rotation_trick=True), tf.constant(normal(10, WIDTH, seed=1))
    with tf.GradientTape() as tape:
        tape.watch(latents)
        value = tf.reduce_sum(quantize(layer, latents))
    codes = np.asarray(layer.lookup(layer.to_codes(latents)))
    expected = [
        reference_rotation(*pair).T @ np.ones(WIDTH)
        for pair in zip(np.asarray(latents), codes, strict=True)
    ]
    np.testing.assert_allclose(tape.gradient(value, latents), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(quantize(layer, latents), codes, rtol=1e-5)


# Losses


@pytest.mark.parametrize("training", [False, True])
def test_losses_and_their_gradients(training):
    tf = pytest.importorskip("tensorflow")
    latents, codebook = normal(40, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_by_brute_force(latents, codebook)
    error = latents - codebook[codes]
    pulled = np.zeros_like(codebook)
    np.add.at(pulled, codes, -2 * error / error.size)
    for make, share in ((gradient_layer, 1.25), (ema_layer, 0.25)):
        layer, watched = make(codebook), tf.constant(latents)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            quantize(layer, watched, training=training)
            (loss,) = layer.losses
        np.testing.assert_allclose(loss, share * np.square(error).mean(), rtol=1e-5)
        on_latents, *on_codes = tape.gradient(loss, [watched, *layer.trainable_variables])
        np.testing.assert_allclose(on_latents, 0.25 * 2 * error / error.size, atol=1e-7)
        assert len(on_codes) == (make is gradient_layer)
        for gradient in on_codes:
            np.testing.assert_allclose(tf.convert_to_tensor(gradient), pulled, atol=1e-7)


# Moving averages


class ReferenceAverages:
    """Appendix A.1, with the discount that rises as step / (step + 9), float64."""

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
            mine = latents[codes == code]
            self.count[code] = decay * self.count[code] + (1 - decay) * len(mine)
            self.total[code] = decay * self.total[code] + (1 - decay) * mine.sum(0)


def test_codebook_is_sum_over_count_before_any_step():
    layer = VectorQuantizerEMA(CODES, WIDTH, 0.25, decay=0.99, restart_threshold=0.5)
    layer.build((None, WIDTH))
    np.testing.assert_array_equal(layer.ema_count, np.ones(CODES))
    np.testing.assert_array_equal(layer.codebook, layer.ema_sum)
    assert np.abs(layer.codebook).max() <= 1 / CODES
    assert np.unique(layer.codebook).size == CODES * WIDTH


@pytest.mark.parametrize("start_step", [0, 1000], ids=["warming up", "warmed up"])
def test_three_steps_are_those_of_the_reference(start_step):
    codebook = normal(CODES, WIDTH)
    layer, reference = ema_layer(codebook, decay=0.9), ReferenceAverages(codebook, 0.9, start_step)
    layer.steps.assign(start_step)
    for step in range(3):
        latents = normal(200, WIDTH, seed=step)
        quantized = quantize(layer, latents, training=True)
        expected = reference.codebook[nearest_by_brute_force(latents, reference.codebook)]
        np.testing.assert_allclose(quantized, expected, atol=1e-5)  # with the codebook as it was
        reference.step(latents)
        np.testing.assert_allclose(layer.codebook, reference.codebook, atol=1e-5)
        np.testing.assert_allclose(layer.ema_count, reference.count, rtol=1e-5)
    assert float(layer.steps) == start_step + 3


def test_at_decay_0_a_code_is_the_mean_of_its_latents():
    latents, codebook = normal(200, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_by_brute_force(latents, codebook)
    layer = ema_layer(codebook, decay=0.0)
    quantize(layer, latents, training=True)
    expected = [latents[codes == code].mean(0) for code in range(CODES)]
    np.testing.assert_allclose(layer.codebook, expected, atol=1e-5)


def test_at_decay_0_an_idle_code_stays_finite():
    codebook = np.eye(CODES, WIDTH, dtype="float32")
    layer = ema_layer(codebook, decay=0.0)
    for _ in range(2):
        quantize(layer, codebook[:1], training=True)
    assert np.isfinite(layer.codebook).all()


def test_idle_code_keeps_its_vector():
    tf = pytest.importorskip("tensorflow")
    codebook = np.array([[1.0, -2.0], [100.0, 300.0]], "float32")
    layer = ema_layer(codebook, decay=0.99)
    latents, codes = tf.constant([[2.0, -1.0]]), tf.constant([0])

    @tf.function
    def idle(steps):
        for _ in tf.range(steps):
            layer._update_codebook(latents, codes, latents)

    idle(20_000)
    np.testing.assert_allclose(layer.codebook[1], codebook[1], rtol=1e-4)
    np.testing.assert_allclose(layer.codebook[0], latents[0], rtol=1e-4)
    assert float(layer.ema_count[1]) > 0


def test_idle_code_moves_to_its_first_latents():
    codebook = np.array([[0.0, 0.0], [100.0, 100.0]], "float32")
    layer = ema_layer(codebook, decay=0.99)
    layer.ema_count.assign([1.0, module.EPSILON])
    layer.ema_sum.assign(codebook * np.array([[1.0], [module.EPSILON]], "float32"))
    quantize(layer, np.full((4, 2), 90.0, "float32"), training=True)
    np.testing.assert_allclose(layer.codebook[1], [90, 90], rtol=1e-4)


# Dead codes


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


def test_restarts_prefer_badly_coded_latents():
    latents = np.zeros((100, WIDTH), "float32")
    latents[37] = 50.0
    for seed in range(5):
        layer = layer_with_dead_code(restart_threshold=0.5, seed=seed)
        quantize(layer, latents, training=True)
        np.testing.assert_array_equal(layer.codebook[-1], latents[37])


def test_no_restarts_in_evaluation_or_when_frozen():
    layer = layer_with_dead_code(restart_threshold=0.5)
    before = values(layer.variables)
    layer.trainable = False
    count = len(layer.weights)
    quantize(layer, normal(50, WIDTH), training=True)
    layer.trainable = True
    quantize(layer, normal(50, WIDTH), training=False)
    assert_bit_equal(before[:count], values(layer.weights))
    unused = keras.random.SeedGenerator(layer.seed)
    np.testing.assert_array_equal(layer.seed_generator.state, unused.state)


# k-means


@both
def test_kmeans_finds_well_separated_clusters(make):
    centres = 10 * np.eye(CODES, WIDTH, dtype="float32")
    centres[WIDTH:] = -10 * np.eye(CODES - WIDTH, WIDTH)
    clouds = centres[:, None] + 0.1 * normal(CODES, 30, WIDTH)
    layer = make()
    layer.initialize_codebook(clouds.reshape(-1, WIDTH))
    found = np.asarray(layer.codebook)
    nearest = np.asarray(layer.to_codes(clouds.mean(1)))
    assert sorted(nearest) == list(range(CODES))
    np.testing.assert_allclose(found[nearest], clouds.mean(1), atol=1e-4)


def test_kmeans_resets_counts_and_sums():
    layer = ema_layer()
    quantize(layer, normal(50, WIDTH), training=True)
    layer.initialize_codebook(normal(100, WIDTH))
    np.testing.assert_array_equal(layer.ema_count, np.ones(CODES))
    np.testing.assert_array_equal(layer.codebook, layer.ema_sum)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty", "ignore:invalid value")
def test_kmeans_survives_fewer_different_latents_than_codes():
    layer = ema_layer()
    layer.initialize_codebook(np.repeat(normal(2, WIDTH), 20, axis=0))
    assert np.isfinite(layer.codebook).all()


# Metrics


def test_perplexity_is_1_for_one_code_and_their_number_for_uniform_codes():
    perplexity = CodebookPerplexity(8)
    perplexity.update_state(np.full((2, 5, 5), 3))
    np.testing.assert_allclose(perplexity.result(), 1, rtol=1e-5)
    perplexity.reset_state()
    perplexity.update_state(np.tile(np.arange(8), 4))
    np.testing.assert_allclose(perplexity.result(), 8, rtol=1e-5)


def test_perplexity_and_usage_count_over_the_epoch():
    usage, perplexity = CodebookUsage(8), CodebookPerplexity(8)
    for code in (1, 6):
        for metric in (usage, perplexity):
            metric.update_state(np.full((4, 4), code))
    assert float(usage.result()) == 2 / 8
    np.testing.assert_allclose(perplexity.result(), 2, rtol=1e-5)
    usage.reset_state()
    assert float(usage.result()) == 0
