"""The batched similarity against scikit-image, and its gradients, under either backend."""

import keras
import numpy as np
import pytest
from helpers import reference_scores
from keras import ops
from skimage.filters import gaussian

from brainslices.errors import InputError
from brainslices.evaluation import ssim as batched_ssim
from brainslices.evaluation.ssim import ssim_map, ssim_scores

TOLERANCE = 1e-4


def ssim(originals, others):
    return ssim_scores(originals, others)[0]


def ssim_foreground(originals, others):
    return ssim_scores(originals, others)[1]


def disc(rows, cols, rng):
    """A bright textured disc on black: flat ground, an edge and an inside, like a head."""
    row, col = np.ogrid[:rows, :cols]
    inside = np.hypot((row - rows / 2) / rows, (col - cols / 2) / cols) < 0.35
    return inside * np.clip(gaussian(rng.random((rows, cols)), 2) + 0.1, 0, 1)


def pairs(rows, cols):
    rng = np.random.default_rng(1)
    head, noise = disc(rows, cols, rng), rng.random((rows, cols))
    flat = np.ones((rows, cols))
    return {
        "noise": (noise, rng.random((rows, cols))),
        "noisy": (head, np.clip(head + 0.02 * rng.normal(size=head.shape), 0, 1)),
        "blurred": (head, gaussian(head, 1.5)),
        "black": (head, 0 * flat),
        "flat": (0.2 * flat, 0.7 * flat),
        "bright": (1 - 0.03 * noise, 1 - 0.03 * rng.random((rows, cols))),
        "dim": (0.03 * noise, 0.03 * rng.random((rows, cols))),
        "inverted": (noise, 1 - noise),
    }


def stacked(rows, cols):
    originals, others = zip(*pairs(rows, cols).values(), strict=True)
    return tuple(np.stack(x)[..., None].astype("float32") for x in (originals, others))


@pytest.fixture(params=["matrices", "shifts"])
def window_mean(request, monkeypatch):
    """Both implementations of the window mean: for a CPU and for a GPU."""
    monkeypatch.setattr(batched_ssim, "runs_on_cpu", lambda: request.param == "matrices")


@pytest.mark.usefixtures("window_mean")
@pytest.mark.parametrize("size", [(64, 64), (47, 33), (11, 12), (208, 176)])
def test_map_and_means_agree_with_scikit_image(size):
    originals, others = stacked(*size)
    maps = ops.convert_to_numpy(ssim_map(originals, others))
    means = ops.convert_to_numpy(ssim(originals, others))
    foregrounds = ops.convert_to_numpy(ssim_foreground(originals, others))
    assert maps.shape == originals.shape
    for k, name in enumerate(pairs(*size)):
        mean, foreground, full = reference_scores(originals[k, ..., 0], others[k, ..., 0])
        assert np.abs(maps[k, ..., 0] - full).max() < TOLERANCE, name
        assert means[k] == pytest.approx(mean, abs=TOLERANCE), name
        assert foregrounds[k] == pytest.approx(foreground, abs=TOLERANCE), name


def test_equal_images_score_exactly_one():
    originals, _ = stacked(40, 30)
    np.testing.assert_array_equal(ops.convert_to_numpy(ssim_map(originals, originals)), 1.0)


def test_ssim_is_symmetric_and_bounded():
    originals, others = stacked(40, 30)
    forth = ops.convert_to_numpy(ssim_map(originals, others))
    back = ops.convert_to_numpy(ssim_map(others, originals))
    np.testing.assert_allclose(forth, back, atol=1e-6)
    assert forth.max() <= 1.0
    assert forth.min() >= -1.0


def test_image_without_foreground_scores_zero():
    black = np.zeros((2, 16, 16, 1), "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(ssim_foreground(black, black + 0.5)), 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_images_are_scored_in_float32(dtype):
    originals, others = (ops.cast(x, dtype) for x in stacked(40, 30))
    scores = ssim_map(originals, others)
    exact = ssim_map(ops.cast(originals, "float32"), ops.cast(others, "float32"))
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(scores), ops.convert_to_numpy(exact))


def test_policy_does_not_change_the_result():
    originals, others = stacked(40, 30)
    expected = ops.convert_to_numpy(ssim(originals, others))
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        scores = ssim(originals, others)
    finally:
        keras.config.set_dtype_policy(previous)
    np.testing.assert_array_equal(ops.convert_to_numpy(scores), expected)


def gradient(function, originals, others):
    if keras.backend.backend() == "jax":
        import jax

        gradients = jax.grad(lambda x: ops.sum(function(originals, x)))(jax.numpy.asarray(others))
    else:
        import tensorflow as tf

        others = tf.convert_to_tensor(others)
        with tf.GradientTape() as tape:
            tape.watch(others)
            total = ops.sum(function(originals, others))
        gradients = tape.gradient(total, others)
    return ops.convert_to_numpy(gradients)


@pytest.mark.usefixtures("window_mean")
@pytest.mark.parametrize("function", [ssim, ssim_foreground])
@pytest.mark.parametrize("levels", [(0, 0), (0, 1), (1, 1), (0.3, 0.3), (0.3, 0.7), (1, 0)])
def test_gradients_are_finite_on_flat_images(function, levels):
    first, second = (np.full((2, 24, 20, 1), level, "float32") for level in levels)
    assert np.isfinite(gradient(function, first, second)).all()


@pytest.mark.usefixtures("window_mean")
@pytest.mark.parametrize("function", [ssim, ssim_foreground])
def test_gradient_agrees_with_finite_differences(function):
    rng = np.random.default_rng(3)
    original = disc(30, 26, rng).astype("float32")
    other = gaussian(original, 1.0).astype("float32") + 0.05
    gradients = gradient(function, original[None, ..., None], other[None, ..., None])[0, ..., 0]
    direction = rng.normal(size=other.shape) * 1e-4

    def score(image):
        return reference_scores(original, image)[0 if function is ssim else 1]

    rise = (score(other + direction) - score(other - direction)) / 2
    assert (gradients * direction).sum() == pytest.approx(rise, rel=1e-2)


def test_climbing_the_gradient_raises_the_score():
    originals, others = (x[1:2] for x in stacked(40, 30))
    better = others + 0.5 * gradient(ssim, originals, others)
    gain = ops.convert_to_numpy(ssim(originals, better) - ssim(originals, others))[0]
    assert gain > 1e-3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX shapes are static")
@pytest.mark.usefixtures("window_mean")
def test_sizes_unknown_while_tracing():
    import tensorflow as tf

    spec = tf.TensorSpec((None, None, None, 1), tf.float32)
    traced = tf.function(ssim_map, input_signature=[spec, spec])
    for size in ((40, 30), (12, 50)):
        originals, others = stacked(*size)
        expected = ops.convert_to_numpy(ssim_map(originals, others))
        np.testing.assert_allclose(traced(originals, others).numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 16, 16), (2, 16, 16)), r"`originals`.*shape \(2, 16, 16\)"),
        (((2, 16, 16, 1), (2, 16, 16, 3)), r"`reconstructions`.* \(2, 16, 16, 3\)"),
        (((2, 10, 16, 1), (2, 10, 16, 1)), r"`originals`.* \(2, 10, 16, 1\)"),
        (
            ((2, 16, 16, 1), (2, 16, 17, 1)),
            r"`reconstructions`.*\(2, 16, 16, 1\) and \(2, 16, 17, 1\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(shapes, message):
    with pytest.raises(InputError, match=message):
        ssim_map(*(np.zeros(shape, "float32") for shape in shapes))
