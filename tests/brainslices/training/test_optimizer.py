import numpy as np
import pytest
from helpers import tiny_training
from training_runs import compiled_model

from brainslices.training.optimizer import ema_swap, learning_rate

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = tiny_training(learning_rate=0.5, warmup_steps=10)
    rate = learning_rate(config, 110)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(rate(5), 0.25, rtol=1e-6)
    np.testing.assert_allclose(rate(10), 0.5, rtol=1e-6)
    np.testing.assert_allclose(rate(60), 0.25, rtol=1e-5)
    np.testing.assert_allclose(rate(110), 0, atol=1e-7)


def test_learning_rate_may_be_constant():
    config = tiny_training(schedule="constant", warmup_steps=0, learning_rate=0.25)
    assert learning_rate(config, 100) == 0.25


@pytest.mark.parametrize(("clip", "norm"), [(2.0, 2.0), (0.0, None)])
def test_optimizer_follows_the_configuration(clip, norm):
    for name, beta_2 in (("adam", "beta_2"), ("muon", "adam_beta_2")):
        config = tiny_training(optimizer=name, beta_2=0.9, gradient_clip=clip)
        optimizer = compiled_model(config).optimizer
        assert (getattr(optimizer, beta_2), optimizer.global_clipnorm) == (0.9, norm)
        assert optimizer.name == name
        assert optimizer.built


def test_weights_without_an_average_are_not_swapped():
    model = compiled_model(tiny_training(average=0.0))
    before = np.array(model.trainable_variables[0])
    with ema_swap(model):
        np.testing.assert_array_equal(model.trainable_variables[0], before)
