"""Operation counts against those of TensorFlow, and the rows of a training."""

import dataclasses

import benchmarks.pixelcnn_benchmarks
import benchmarks.vqvae_benchmarks
import keras
import numpy as np
import pytest
import tensorflow as tf
from benchmarks import roofline
from benchmarks.harness import Setting
from benchmarks.roofline import matrix_multiplication

import pixelcnn.config
import vqvae.config
from pixelcnn.model import PixelCNN
from vqvae.model import VQVAE

pytestmark = pytest.mark.usefixtures("fresh_keras")


def count_operations(function, *specifications):
    """Floating-point operations of a forward pass, as TensorFlow counts those of its graph."""
    profiler = tf.compat.v1.profiler
    graph = tf.function(function).get_concrete_function(*specifications).graph
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    return profiler.profile(graph, options=options.with_empty_output().build()).total_float_ops


def test_operations_of_a_vqvae():
    config = dataclasses.replace(
        vqvae.config.PRESETS["default"].model, channels=(8, 16), embedding_dim=4
    )
    model = VQVAE((32, 32), (0, 0, 32, 32), 0.0, 1.0, **dataclasses.asdict(config))
    model.build((None, 32, 32, 1))
    forward = count_operations(
        lambda images: model.decoder(model.encoder(images)),
        tf.TensorSpec((1, *model.coded_shape, 1)),
    )
    # Biases and activations are the rest.
    assert 0.97 < benchmarks.vqvae_benchmarks._count_operations(model) / (3 * forward) <= 1


def test_operations_of_a_prior():
    config = dataclasses.replace(pixelcnn.config.PRESETS["default"].model, channels=32, layers=3)
    model = PixelCNN((6, 5), 64, **dataclasses.asdict(config))
    model.build()
    forward = count_operations(
        lambda codes, position: model({"codes": codes, "position": position}),
        tf.TensorSpec((1, 6, 5), tf.int32),
        tf.TensorSpec((1,)),
    )

    assert 0.9 < benchmarks.pixelcnn_benchmarks._count_operations(model) / (3 * forward) < 1.1


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_matrix_products_have_a_rate(policy):
    assert 0 < matrix_multiplication(policy, quick=True)() < 1e6


def test_rows_of_a_training(monkeypatch, tmp_path):
    rates = {("float32", False): 50.0, ("float32", True): 40.0}
    rates |= {("mixed_bfloat16", False): 100.0, ("mixed_bfloat16", True): 110.0}
    monkeypatch.setattr(roofline, "trainable_policies", lambda: ["float32", "mixed_bfloat16"])
    monkeypatch.setattr(roofline, "call", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(roofline, "matrix_multiplication", lambda policy, quick: lambda: 0.8)
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path, quick=True)
    rows = roofline.training_rows("train", setting, lambda _, *key: rates[key], 8e9)
    whole, share, mixed, _ = rows
    assert (whole.name, whole.value, whole.ratio, whole.is_met) == (
        "train, float32",
        50.0,
        1.25,
        True,
    )
    assert (share.value, share.ratio, share.note) == (0.4, 0.5, "8.00 GFLOP per slice")
    assert (mixed.note, mixed.is_met) == ("2.00x float32", False)


class FewBatches(keras.utils.PyDataset):
    """Two batches of four items: fewer than the steps that are timed."""

    batch_size = 4

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.ones((4, 3), "float32"), np.ones((4, 1), "float32")


@pytest.mark.parametrize("plain", [False, True])
def test_training_has_a_rate_if_the_batches_are_few(plain, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.compile = lambda optimizer: None  # a plain `fit` would replace the loss of this model
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path, quick=True)
    assert 0 < roofline.measure_training(setting, model, FewBatches(), plain) < 1e6
