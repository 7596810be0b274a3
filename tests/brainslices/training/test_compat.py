"""Each hook into Keras: the behaviour that it changes, and that Keras still calls it."""

from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny_training, values
from training_runs import NumberedArchive, compiled_model

from brainslices.training import compat
from brainslices.training.compat import (
    Adam,
    LossScaleOptimizer,
    Muon,
    averaged_variables,
    sync_variables,
)

pytestmark = pytest.mark.usefixtures("fresh_keras")

NO_DECAY = {"weight_decay": None, "adam_weight_decay": None}
IMAGES = NumberedArchive().load(np.arange(8))


def applied(optimizer, gradients=(3.0, 4.0)):
    """Apply a gradient to a variable of zeros: the variable."""
    variable = keras.Variable(np.zeros(len(gradients), "float32"))
    optimizer.apply([keras.ops.convert_to_tensor(gradients)], [variable])
    return variable


def spy(monkeypatch, cls, name):
    """Count the calls of a method."""
    calls, method = [], getattr(cls, name)

    def counted(self, *arguments):
        calls.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(cls, name, counted)
    return calls


@pytest.mark.parametrize(("name", "optimizer"), [("adam", Adam), ("muon", Muon)])
def test_keras_still_calls_what_is_overridden(monkeypatch, name, optimizer):
    hooks = ["_clip_gradients", "finalize_variable_values"]
    if optimizer is Muon:
        hooks += ["_should_use_adamw", "zeropower_via_newtonschulz5", "lr_adjust"]
    calls = [spy(monkeypatch, optimizer, hook) for hook in hooks]
    scale = spy(monkeypatch, LossScaleOptimizer, "check_finite")
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled_model(tiny_training(optimizer=name, average=0.5, gradient_clip=1.0))
    assert isinstance(model.optimizer, LossScaleOptimizer)
    model.fit(IMAGES, batch_size=8, verbose=0)
    assert all(calls)
    assert scale


def test_end_of_fit_leaves_the_weights_alone():
    variable = keras.Variable([0.0])
    for cls, kept in ((keras.optimizers.Adam, False), (Adam, True)):
        optimizer = cls(use_ema=True, ema_momentum=0.5)
        optimizer.build([variable])
        variable.assign([5.0])
        optimizer.finalize_variable_values([variable])
        assert (float(variable[0]) == 5) is kept, "no longer needed if Keras keeps the weights"


def test_clipping_uses_the_norm_of_the_whole_batch(monkeypatch):
    clipped = []
    monkeypatch.setattr(
        keras.optimizers.Adam, "_clip_gradients", lambda self, grads: clipped.append(grads) or grads
    )
    monkeypatch.setattr(compat, "replica_count", lambda: 2)
    monkeypatch.setattr(compat, "all_reduce_sum", lambda grads: [grad * 10 for grad in grads])
    result = Adam(global_clipnorm=1.0)._clip_gradients([np.array([1.0])])
    assert (clipped[0][0], result[0]) == (10, 5)


def test_average_follows_the_documented_recurrence():
    """Keras reads `ema_momentum` in each step, and stores the averages under a private name."""
    optimizer = Adam(learning_rate=0.5, use_ema=True, ema_momentum=0.5)
    variable = keras.Variable([0.0])
    expected = None
    for step in range(4):
        optimizer.apply([keras.ops.convert_to_tensor([1.0])], [variable])
        weight, momentum = float(variable[0]), min(0.5, (1 + step) / (10 + step))
        expected = weight if step == 0 else momentum * expected + (1 - momentum) * weight
    (average,) = optimizer._model_variables_moving_average
    np.testing.assert_allclose(float(average[0]), expected, rtol=1e-5)


def orthogonalize(matrix):
    """Five Newton-Schulz steps of the Muon paper, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


def kernel(shape, path="dense"):
    with keras.name_scope(path):
        return keras.Variable(np.ones(shape, "float32"), name="kernel")


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 3, 2, 8), (1, 1, 16, 4), (4, 4, 1, 8)])
def test_muon_follows_its_definition(shape, on_cpu, monkeypatch):
    """Nesterov momentum, orthogonalised as a matrix to the last axis, scaled to 0.2 RMS."""
    monkeypatch.setattr(compat, "runs_on_cpu", lambda: on_cpu)
    variable, rng = kernel(shape), np.random.default_rng(0)
    optimizer = Muon(0.1, **NO_DECAY)
    expected, momentum = np.ones(shape), np.zeros(shape)
    for _ in range(3):
        gradient = rng.normal(size=shape).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        momentum = 0.95 * momentum + gradient
        matrix = (gradient + 0.95 * momentum).reshape(-1, shape[-1])
        update = 0.2 * np.sqrt(max(matrix.shape)) * orthogonalize(matrix)
        expected -= 0.1 * update.reshape(shape)
        # Close to orthogonal: every singular value is near 1, and the RMS near 0.2.
        assert 0.1 < np.sqrt(np.mean(update**2)) < 0.3
    np.testing.assert_allclose(variable, expected, atol=1e-4)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_muon_orthogonalises_ill_conditioned_kernels(power):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, 48)))[0] for side in (160, 48))
    matrix = left / np.arange(1.0, 49) ** power @ right.T
    update = Muon(0.1, **NO_DECAY).zeropower_via_newtonschulz5(
        keras.ops.convert_to_tensor(matrix, "float32"), 5
    )
    np.testing.assert_allclose(update, orthogonalize(matrix), atol=2e-3)


def test_muon_leaves_biases_embeddings_and_logits_to_adam():
    bias = keras.Variable(np.ones((4, 4), "float32"), name="bias")
    variables = [bias, kernel((3, 4), "logits"), kernel((3, 4))]
    others = [keras.Variable(np.array(variable)) for variable in variables]
    gradients = [np.random.default_rng(1).normal(size=v.shape) for v in variables]
    gradients = [keras.ops.convert_to_tensor(gradient, "float32") for gradient in gradients]
    Muon(0.1, adam_beta_2=0.99, **NO_DECAY).apply(gradients, variables)
    Adam(0.1, beta_2=0.99).apply(gradients, others)
    for variable, other in zip(variables[:2], others[:2], strict=True):
        np.testing.assert_allclose(variable, other, rtol=1e-5)
    assert not np.allclose(variables[2], others[2])


@pytest.mark.parametrize("filters", [2, 40])
def test_muon_does_not_touch_masked_weights(filters):
    """A masked convolution has gradients of exactly 0 there, on either side of the matrix."""
    variable = kernel((2, 3, 4, filters))
    gradient = np.random.default_rng(2).normal(size=variable.shape).astype("float32")
    gradient[1, 1:] = 0
    optimizer = Muon(0.1, **NO_DECAY)
    for _ in range(2):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    weights = np.array(variable)
    np.testing.assert_array_equal(weights[1, 1:], 1)
    assert (weights[0] != 1).all()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_averages_are_those_of_the_trainable_variables(policy):
    keras.config.set_dtype_policy(policy)
    assert averaged_variables(compiled_model(tiny_training(average=0.0))) is None
    model = compiled_model(tiny_training(average=0.5))
    shapes = [variable.shape for variable in model.trainable_variables]
    assert [average.shape for average in averaged_variables(model)] == shapes


@pytest.mark.parametrize(("overflow", "finite"), [(0.0, True), (1.0, False)])
def test_overflow_on_another_replica_skips_the_step(monkeypatch, overflow, finite):
    monkeypatch.setattr(compat, "all_reduce_sum", lambda value: value + overflow)
    optimizer = LossScaleOptimizer(Adam(), initial_scale=1.0)
    assert (np.asarray(applied(optimizer)) != 0).all() == finite


def test_state_of_jax_is_synchronised_by_its_trainer():
    source = Path(keras.__file__).parent / "src" / "backend" / "jax" / "trainer.py"
    assert "def jax_state_sync(self):" in source.read_text()
    model = compiled_model(tiny_training())
    before = values(model.weights)
    sync_variables(model)
    for one, other in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(one, other)
