import numpy as np
import pytest
from helpers import normal
from quantizer_layers import WIDTH, each_layer, quantize

from vqvae.quantizer import rotate_to

pytestmark = pytest.mark.usefixtures("fresh_keras")


def reference_rotation(latent, code):
    """Scaled rotation of a latent to its code, lambda * R of section 4.2, in float64."""
    latent, code = latent.astype("float64"), code.astype("float64")
    latent_norm, code_norm = np.linalg.norm(latent), np.linalg.norm(code)
    latent, code = latent / latent_norm, code / code_norm
    mean = (latent + code) / np.linalg.norm(latent + code)
    rotation = np.eye(len(code)) - 2 * np.outer(mean, mean) + 2 * np.outer(code, latent)
    return code_norm / latent_norm * rotation


def test_rotation_maps_a_latent_to_its_code():
    latents, codes = normal(1000, WIDTH, seed=1), normal(1000, WIDTH, seed=2)
    np.testing.assert_allclose(rotate_to(latents, codes), codes, rtol=1e-5)


def test_gradient_of_the_rotation_matches_the_reference():
    tf = pytest.importorskip("tensorflow")
    latents, codes = normal(20, WIDTH, seed=1), normal(20, WIDTH, seed=2)
    weights = normal(20, WIDTH, seed=3)
    latents_tensor = tf.constant(latents)
    with tf.GradientTape() as tape:
        tape.watch(latents_tensor)
        value = tf.reduce_sum(rotate_to(latents_tensor, tf.constant(codes)) * weights)
    expected = [
        reference_rotation(latent, code).T @ weight
        for latent, code, weight in zip(latents, codes, weights, strict=True)
    ]
    np.testing.assert_allclose(tape.gradient(value, latents_tensor), expected, rtol=1e-4, atol=1e-4)
    rotated = [reference_rotation(*pair) @ pair[0] for pair in zip(latents, codes, strict=True)]
    np.testing.assert_allclose(rotated, codes, atol=1e-6)  # the reference itself


@each_layer
def test_layer_applies_the_rotation_trick(make_layer):
    tf = pytest.importorskip("tensorflow")
    layer, latents = make_layer(rotation_trick=True), tf.constant(normal(10, WIDTH, seed=1))
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
