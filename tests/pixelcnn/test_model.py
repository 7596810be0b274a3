import itertools

import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, values
from keras import ops
from tiny_prior import CODES, GRID, SMALL, tiny_inputs, tiny_pixelcnn

from brainslices.errors import InputError
from pixelcnn.config import PixelCNNConfig
from pixelcnn.masks import SCANS
from pixelcnn.model import PixelCNN

pytestmark = pytest.mark.usefixtures("fresh_keras")


def logit_sensitivity(model):
    """Sensitivity of the logits of each cell (rows) to the code of each cell (columns).

    Both in scan order, by the gradient through the embedded codes.
    """
    import tensorflow as tf

    inputs = tiny_inputs(1)
    embedded = tf.Variable(model.embedding(model.to_scan(inputs["codes"])))
    embedding, model.embedding = model.embedding, lambda codes: embedded
    try:
        with tf.GradientTape() as tape:
            logits = model.to_scan(ops.sum(ops.abs(model(inputs)), axis=-1))
            flat = ops.reshape(logits, (-1,))
        jacobian = tape.jacobian(flat, embedded)
    finally:
        model.embedding = embedding
    cells = GRID[0] * GRID[1]
    return np.abs(np.asarray(jacobian).reshape(cells, cells, -1)).sum(axis=-1)


def train_one_step(model):
    model.compile("adam", run_eagerly=True)  # one step is faster than its graph
    model.fit(tiny_inputs(8), batch_size=8, verbose=0)
    return model


@pytest.mark.parametrize(
    ("scan", "attention_layers", "after_a_step"),
    [
        ("raster", 0, False),
        ("turned", 2, False),
        pytest.param("turned", 2, True, marks=pytest.mark.slow),
    ],
)
def test_logits_depend_on_all_codes_before_and_on_no_others(scan, attention_layers, after_a_step):
    model = tiny_pixelcnn(scan=scan, attention_layers=attention_layers, fill=False)
    if after_a_step:
        train_one_step(model)
    depends = logit_sensitivity(model)
    is_earlier = np.tri(len(depends), k=-1, dtype=bool)
    assert (depends[~is_earlier] == 0).all(), (
        "the receptive field includes the code itself or a later one"
    )
    # Cells up-right included: there is no blind spot.
    assert (depends[is_earlier] > 0).all(), "the receptive field has a blind spot"


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("frequencies", [4, 0], ids=["conditional", "unconditional"])
def test_probabilities_of_all_grids_sum_to_one(scan, frequencies):
    model = tiny_pixelcnn((2, 2), 2, scan=scan, position_frequencies=frequencies)
    grids = np.array(list(itertools.product((0, 1), repeat=4)), "int32").reshape(-1, 2, 2)
    for position in (0.0, 0.7):
        log_prob = model.log_prob(grids, np.full(16, position, "float32"))
        probabilities = np.exp(np.asarray(log_prob).sum(axis=(1, 2)))
        assert np.ptp(probabilities) > 0.01
        np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)


@pytest.mark.slow
def test_unconditional_prior_ignores_the_position():
    inputs = tiny_inputs()
    moved = {**inputs, "position": 1 - inputs["position"]}
    assert_bit_equal(
        [np.asarray(tiny_pixelcnn(position_frequencies=0)(inputs))],
        [np.asarray(tiny_pixelcnn(position_frequencies=0)(moved))],
    )
    assert np.abs(np.asarray(tiny_pixelcnn()(inputs) - tiny_pixelcnn()(moved))).max() > 0.01


def test_loss_is_minus_the_mean_log_probability():
    model = tiny_pixelcnn(dropout=0.0)
    inputs = tiny_inputs(6)
    model.compile("sgd")
    scores = model.evaluate(inputs, batch_size=4, verbose=0, return_dict=True)
    nats = -np.asarray(model.log_prob(inputs["codes"], inputs["position"])).mean()
    np.testing.assert_allclose(scores["nats_per_code"], nats, rtol=1e-5)
    logits = np.asarray(model(inputs)).astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, inputs["codes"][..., None], axis=-1)
    np.testing.assert_allclose(nats, -np.log(chosen).mean(), rtol=1e-4)


@pytest.mark.parametrize("scan", SCANS)
def test_from_scan_inverts_to_scan(scan):
    model = tiny_pixelcnn(scan=scan)
    inputs = tiny_inputs()["codes"]
    np.testing.assert_array_equal(model.from_scan(model.to_scan(inputs)), inputs)
    deep = np.random.default_rng(0).normal(size=(2, *model.scan_shape, 3))
    np.testing.assert_array_equal(model.to_scan(model.from_scan(deep)), deep)


@pytest.mark.slow
def test_training_lowers_the_loss():
    model = tiny_pixelcnn(fill=False, layers=1, attention_layers=0)
    model.compile(keras.optimizers.Adam(0.03))
    inputs = tiny_inputs(16)
    inputs["codes"][:] = inputs["codes"][:1]
    history = model.fit(inputs, batch_size=16, epochs=15, verbose=0).history["nats_per_code"]
    assert history[-1] < 0.5 * history[0]


def test_saved_model_gives_the_same_logits(tmp_path):
    model, inputs = tiny_pixelcnn(scan="turned"), tiny_inputs()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert_bit_equal(values(loaded.weights), values(model.weights))
    np.testing.assert_array_equal(loaded(inputs), model(inputs))


def test_half_precision_keeps_logits_and_weights_in_float32():
    model = PixelCNN(GRID, CODES, dtype="mixed_bfloat16", **SMALL)
    logits = model(tiny_inputs())
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert {keras.backend.standardize_dtype(each.dtype) for each in model.weights} == {"float32"}
    assert keras.backend.standardize_dtype(model.blocks[0].compute_dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"layers": 0}, "Received: layers=0."),
        ({"kernel_size": 4}, "Received: kernel_size=4."),
        ({"attention_layers": 9}, "Received: attention_layers=9."),
        ({"attention_heads": 3}, "Received: attention_heads=3."),
        ({"dropout": 1.0}, "Received: dropout=1.0."),
        ({"scan": "spiral"}, "Received: scan='spiral'."),
        ({"position_frequencies": -1}, "Received: position_frequencies=-1."),
    ],
)
def test_invalid_configuration_raises(changes, received):
    with pytest.raises(InputError) as error:
        PixelCNNConfig(**{**SMALL, **changes})
    assert f"`{next(iter(changes))}` must be" in str(error.value)
    assert received in str(error.value)
