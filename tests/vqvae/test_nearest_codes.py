import keras
import numpy as np
import pytest
from helpers import normal, python
from keras import ops
from quantizer_layers import CODES, WIDTH, nearest_by_brute_force

from vqvae import quantizer as module
from vqvae.quantizer import nearest_codes

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.mark.parametrize("count", [1, 99, 100, 101])
@pytest.mark.parametrize("block", [2**24, 4 * CODES, 1])
def test_nearest_codes_match_brute_force(monkeypatch, count, block):
    monkeypatch.setattr(module, "SCORE_BLOCK", block)
    latents, codebook = normal(count, WIDTH, seed=1), normal(CODES, WIDTH)
    codes = nearest_codes(ops.convert_to_tensor(latents), ops.convert_to_tensor(codebook))
    assert keras.backend.standardize_dtype(codes.dtype) == "int32"
    np.testing.assert_array_equal(codes, nearest_by_brute_force(latents, codebook))


@pytest.mark.parametrize("block", [2**24, 4 * CODES])
def test_nearest_codes_of_a_dynamic_batch_size_match_brute_force(monkeypatch, block):
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
def test_ties_resolve_to_the_lowest_code(monkeypatch, block):
    monkeypatch.setattr(module, "SCORE_BLOCK", block)
    codebook = np.repeat(normal(CODES // 2, WIDTH), 2, axis=0)
    codes = nearest_codes(ops.convert_to_tensor(codebook), ops.convert_to_tensor(codebook))
    np.testing.assert_array_equal(codes, [0, 0, 2, 2, 4, 4])


@pytest.mark.slow
@pytest.mark.long
def test_memory_of_the_nearest_code_search_is_bounded():
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
