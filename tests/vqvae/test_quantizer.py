import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, check_layer, normal, values
from keras import ops
from quantizer_layers import (
    CODES,
    WIDTH,
    each_layer,
    ema_layer,
    gradient_layer,
    nearest_by_brute_force,
    quantize,
)

pytestmark = pytest.mark.usefixtures("fresh_keras")


@each_layer
def test_layer_contract(make_layer, tmp_path):
    check_layer(make_layer(name="quantizer"), normal(2, 4, 5, WIDTH), tmp_path)


@each_layer
def test_quantising_a_code_returns_it(make_layer):
    layer = make_layer()
    codebook = np.asarray(layer.codebook)
    np.testing.assert_allclose(quantize(layer, codebook), codebook, atol=1e-7)
    np.testing.assert_array_equal(layer.to_codes(codebook), np.arange(CODES))


@each_layer
def test_lookup_of_codes_is_the_quantised_latents(make_layer):
    layer, latents = make_layer(), normal(2, 4, 5, WIDTH)
    codes = layer.to_codes(latents)
    assert codes.shape == (2, 4, 5)
    np.testing.assert_array_equal(
        codes, nearest_by_brute_force(latents.reshape(-1, WIDTH), layer.codebook).reshape(2, 4, 5)
    )
    np.testing.assert_allclose(quantize(layer, latents), layer.lookup(codes), atol=1e-6)


@each_layer
def test_permuting_the_codebook_permutes_the_codes(make_layer):
    codebook, latents = normal(CODES, WIDTH), normal(50, WIDTH, seed=1)
    order = np.random.default_rng(0).permutation(CODES)
    codes = np.asarray(make_layer(codebook).to_codes(latents))
    permuted = np.asarray(make_layer(codebook[order]).to_codes(latents))
    np.testing.assert_array_equal(order[permuted], codes)


@each_layer
def test_straight_through_gradient_is_the_identity(make_layer):
    tf = pytest.importorskip("tensorflow")
    layer, latents, weights = (
        make_layer(),
        tf.constant(normal(20, WIDTH)),
        normal(20, WIDTH, seed=1),
    )
    with tf.GradientTape() as tape:
        tape.watch(latents)
        value = tf.reduce_sum(quantize(layer, latents) * weights)
    np.testing.assert_array_equal(tape.gradient(value, latents), weights)


@each_layer
def test_norms_do_not_affect_codes_when_l2_normalized(make_layer):
    layer, latents = make_layer(l2_normalized=True), normal(50, WIDTH)
    scales = np.random.default_rng(0).uniform(0.1, 10, (50, 1)).astype("float32")
    np.testing.assert_array_equal(layer.to_codes(latents), layer.to_codes(latents * scales))
    np.testing.assert_allclose(np.linalg.norm(layer.codebook, axis=-1), 1, atol=1e-5)
    units = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    expected = nearest_by_brute_force(units, np.asarray(layer.codebook))
    np.testing.assert_array_equal(layer.to_codes(latents), expected)


@each_layer
@pytest.mark.parametrize("rotation_trick", [False, True])
def test_gradient_at_a_latent_of_zero_is_finite(make_layer, rotation_trick):
    tf = pytest.importorskip("tensorflow")
    layer = make_layer(l2_normalized=True, rotation_trick=rotation_trick)
    latents = tf.zeros((2, WIDTH))
    with tf.GradientTape() as tape:
        tape.watch(latents)
        value = tf.reduce_sum(quantize(layer, latents)) + sum(layer.losses)
    assert np.isfinite(tape.gradient(value, latents)).all()


@each_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_quantises_in_float32(make_layer, policy):
    codebook, latents = 300 * normal(CODES, WIDTH), 300 * normal(40, WIDTH, seed=1)
    keras.mixed_precision.set_dtype_policy(policy)
    layer = make_layer(codebook)
    half_precision = ops.cast(latents, policy.removeprefix("mixed_"))
    quantized = quantize(layer, half_precision, training=True)
    assert keras.backend.standardize_dtype(quantized.dtype) == "float32"
    assert {variable.dtype for variable in layer.weights} <= {"float32", "uint32"}
    assert np.isfinite(layer.losses[0])  # the squares overflow float16
    rounded = np.asarray(ops.cast(half_precision, "float32"))
    expected = codebook[nearest_by_brute_force(rounded, codebook)]
    np.testing.assert_allclose(quantized, expected, rtol=1e-6, atol=1e-4)


@each_layer
def test_inference_does_not_change_the_variables(make_layer):
    layer = make_layer()
    before = values(layer.weights)
    quantize(layer, normal(50, WIDTH, seed=1), training=False)
    assert_bit_equal(before, values(layer.weights))


@pytest.mark.slow
@each_layer
@pytest.mark.parametrize("rotation_trick", [False, True])
def test_frozen_layer_keeps_its_variables_in_fit(make_layer, rotation_trick):
    layer = make_layer(rotation_trick=rotation_trick)
    layer.trainable = False
    inputs = keras.Input((WIDTH,))
    model = keras.Model(
        inputs, keras.layers.Dense(1)(quantize(layer, keras.layers.Dense(WIDTH)(inputs)))
    )
    model.compile("adam", "mse")
    before, all_before = values(layer.weights), values(model.weights)
    model.fit(normal(32, WIDTH), normal(32, 1), batch_size=8, epochs=2, verbose=0)
    assert_bit_equal(before, values(layer.weights))
    changed = [(a != b).any() for a, b in zip(all_before, values(model.weights), strict=True)]
    assert sum(changed) == 4  # the two dense layers were trained


@pytest.mark.parametrize("training", [False, True])
def test_losses_and_their_gradients_match_the_reference(training):
    tf = pytest.importorskip("tensorflow")
    latents, codebook = normal(40, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_by_brute_force(latents, codebook)
    error = latents - codebook[codes]
    expected = np.zeros_like(codebook)
    np.add.at(expected, codes, -2 * error / error.size)
    for make_layer, weight in ((gradient_layer, 1.25), (ema_layer, 0.25)):
        layer, inputs = make_layer(codebook), tf.constant(latents)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            quantize(layer, inputs, training=training)
            (loss,) = layer.losses
        np.testing.assert_allclose(loss, weight * np.square(error).mean(), rtol=1e-5)
        latent_gradient, *codebook_gradients = tape.gradient(
            loss, [inputs, *layer.trainable_variables]
        )
        np.testing.assert_allclose(latent_gradient, 0.25 * 2 * error / error.size, atol=1e-7)
        assert len(codebook_gradients) == (make_layer is gradient_layer)
        for gradient in codebook_gradients:
            np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, atol=1e-7)
