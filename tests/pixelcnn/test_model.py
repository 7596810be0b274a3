import itertools

import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, values
from keras import ops
from tiny_prior import CODES, GRID, SMALL, inputs, made

from brainslices.errors import InputError
from pixelcnn.config import PixelCNNConfig
from pixelcnn.masks import SCANS
from pixelcnn.model import PixelCNN

pytestmark = pytest.mark.usefixtures("fresh_keras")


def reach(model):
    """How much the logits at each place (rows) depend on the code at each place (columns).

    Both in scan order, by the gradient through the embedded codes.
    """
    import tensorflow as tf

    given = inputs(1)
    embedded = tf.Variable(model.embedding(model.to_scan(given["codes"])))
    looked_up, model.embedding = model.embedding, lambda codes: embedded
    try:
        with tf.GradientTape() as tape:
            logits = model.to_scan(ops.sum(ops.abs(model(given)), axis=-1))
            flat = ops.reshape(logits, (-1,))
        jacobian = tape.jacobian(flat, embedded)
    finally:
        model.embedding = looked_up
    cells = GRID[0] * GRID[1]
    return np.abs(np.asarray(jacobian).reshape(cells, cells, -1)).sum(axis=-1)


def trained_a_step(model):
    model.compile("adam")
    model.fit(inputs(8), batch_size=8, verbose=0)
    return model


@pytest.mark.parametrize(
    ("scan", "attention_layers"), [("raster", 0), ("turned", 2), ("folded", 2)]
)
@pytest.mark.parametrize("after_a_step", [False, True], ids=["untrained", "after a step"])
def test_logits_depend_on_all_that_comes_before_and_nothing_else(
    scan, attention_layers, after_a_step
):
    model = made(scan=scan, attention_layers=attention_layers, fill=False)
    if after_a_step:
        trained_a_step(model)
    depends = reach(model)
    behind = np.tri(len(depends), k=-1, dtype=bool)
    assert (depends[~behind] == 0).all(), "a code sees itself or what comes after it"
    # Up-right of it included: there is no blind spot.
    assert (depends[behind] > 0).all(), "a code does not see all that came before it"


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("frequencies", [4, 0], ids=["conditional", "unconditional"])
def test_probabilities_of_all_grids_sum_to_one(scan, frequencies):
    model = made((2, 2), 2, scan=scan, position_frequencies=frequencies)
    grids = np.array(list(itertools.product((0, 1), repeat=4)), "int32").reshape(-1, 2, 2)
    for position in (0.0, 0.7):
        log_prob = model.log_prob(grids, np.full(16, position, "float32"))
        chances = np.exp(np.asarray(log_prob).sum(axis=(1, 2)))
        assert np.ptp(chances) > 0.01
        np.testing.assert_allclose(chances.sum(), 1, rtol=1e-5)


def test_unconditional_prior_takes_no_notice_of_the_position():
    given = inputs()
    moved = {**given, "position": 1 - given["position"]}
    assert_bit_equal(
        [np.asarray(made(position_frequencies=0)(given))],
        [np.asarray(made(position_frequencies=0)(moved))],
    )
    assert np.abs(np.asarray(made()(given) - made()(moved))).max() > 0.01


def test_loss_is_minus_the_mean_log_probability():
    model = made(dropout=0.0)
    given = inputs(6)
    model.compile("sgd")
    scores = model.evaluate(given, batch_size=4, verbose=0, return_dict=True)
    nats = -np.asarray(model.log_prob(given["codes"], given["position"])).mean()
    np.testing.assert_allclose(scores["nats_per_code"], nats, rtol=1e-5)
    logits = np.asarray(model(given)).astype("float64")
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(chances, given["codes"][..., None], axis=-1)
    np.testing.assert_allclose(nats, -np.log(chosen).mean(), rtol=1e-4)


@pytest.mark.parametrize("scan", SCANS)
def test_the_way_to_scan_order_leads_back(scan):
    model = made(scan=scan)
    given = inputs()["codes"]
    np.testing.assert_array_equal(model.from_scan(model.to_scan(given)), given)
    deep = np.random.default_rng(0).normal(size=(2, *model.scan_shape, 3))
    np.testing.assert_array_equal(model.to_scan(model.from_scan(deep)), deep)


def test_training_lowers_the_loss():
    model = made(fill=False)
    model.compile(keras.optimizers.Adam(0.01))
    given = inputs(16)
    given["codes"][:] = given["codes"][:1]
    history = model.fit(given, batch_size=16, epochs=30, verbose=0).history["nats_per_code"]
    assert history[-1] < 0.5 * history[0]


def test_saved_model_gives_the_same_logits(tmp_path):
    model, given = made(scan="folded"), inputs()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert_bit_equal(values(loaded.weights), values(model.weights))
    np.testing.assert_array_equal(loaded(given), model(given))


def test_half_precision_keeps_logits_and_weights_in_float32():
    model = PixelCNN(GRID, CODES, dtype="mixed_bfloat16", **SMALL)
    logits = model(inputs())
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert {keras.backend.standardize_dtype(each.dtype) for each in model.weights} == {"float32"}
    assert keras.backend.standardize_dtype(model.blocks[0].compute_dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "`layers` must be at least 1. Received: layers=0."),
        ({"kernel_size": 4}, "`kernel_size` must be odd and positive. Received: kernel_size=4."),
        ({"attention_layers": 9}, "Received: attention_layers=9."),
        ({"attention_heads": 3}, "must be a divisor of channels=8. Received: attention_heads=3."),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and under 1. Received: dropout=1.0."),
        ({"scan": "spiral"}, "one of raster, turned, folded. Received: scan='spiral'."),
        ({"position_frequencies": -1}, "Received: position_frequencies=-1."),
    ],
)
def test_wrong_configuration_is_refused(changes, message):
    with pytest.raises(InputError) as error:
        PixelCNNConfig(**{**SMALL, **changes})
    assert message in str(error.value)
