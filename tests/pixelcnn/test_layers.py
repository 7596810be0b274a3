import keras
import numpy as np
import pytest
from helpers import normal

from pixelcnn.layers import Condition, GatedBlock, MaskedConv2D, RowAttention, gate
from pixelcnn.masks import raster_mask

pytestmark = pytest.mark.usefixtures("fresh_keras")

GRID = (2, 4, 5)


def filled(layer, *shapes):
    """The built layer with nonzero weights."""
    layer.build(*shapes)
    for number, weight in enumerate(layer.trainable_variables):
        weight.assign(normal(*weight.shape, seed=number))
    return layer


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def numpy_gate(features):
    value, openness = np.split(features, 2, axis=-1)
    return np.tanh(value) * sigmoid(openness)


@pytest.mark.parametrize("stack", ["vertical", "horizontal"])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_masked_convolution_is_a_plain_one_with_a_masked_kernel(stack, mask_type, size):
    layer = filled(MaskedConv2D(2, size, stack, mask_type), (*GRID, 3))
    inputs, half = normal(*GRID, 3), size // 2
    mask = raster_mask(size, mask_type)
    if stack == "vertical":
        mask = np.zeros((size, size))
        mask[: half + (mask_type == "B")] = 1
    kernel = np.zeros((size, size, 3, 2))
    if stack == "vertical":
        kernel[: half + 1] = layer.kernel
    else:
        kernel[half : half + 1, : half + 1] = layer.kernel
        mask[:half] = 0
    kernel *= mask[..., None, None]
    padded = np.pad(inputs, ((0, 0), (half, half), (half, half), (0, 0)))
    expected = np.zeros((*GRID, 2)) + np.asarray(layer.bias)
    for row, col in np.ndindex(GRID[1:]):
        window = padded[:, row : row + size, col : col + size]
        expected[:, row, col] += np.einsum("bhwc,hwcf->bf", window, kernel)
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-4)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_convolving_a_row_with_the_rows_above_gives_that_row(mask_type):
    layer = filled(MaskedConv2D(2, 5, "vertical", mask_type), (*GRID, 3))
    inputs = normal(*GRID, 3)
    rows = layer.convolve_rows(inputs[:, 1:4])
    np.testing.assert_allclose(rows[:, 0], layer(inputs)[:, 3], atol=1e-5)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_matrix_maps_a_window_to_the_convolution_s_output(mask_type):
    layer = filled(MaskedConv2D(2, 5, "horizontal", mask_type), (*GRID, 3))
    inputs = normal(*GRID, 3)
    window = inputs[:, 1, 1:4].reshape(GRID[0], -1)
    outputs = window @ np.asarray(layer.matrix) + np.asarray(layer.bias)
    np.testing.assert_allclose(outputs, layer(inputs)[:, 1, 3], atol=1e-5)


def test_an_assigned_kernel_cannot_leak():
    layer = MaskedConv2D(1, 3, "horizontal", "A", use_bias=False)
    layer.build((1, 1, 2, 1))
    layer.kernel.assign(np.ones(layer.kernel.shape))
    np.testing.assert_array_equal(layer(np.float32([[[[5], [7]]]]))[0, 0, :, 0], [0, 5])


def test_gated_block_is_the_paper_s_equations():
    block = filled(GatedBlock(3, 1, 0.0, seed=0), (*GRID, 3), (*GRID, 3), (*GRID, 2))
    vertical, horizontal, condition = normal(*GRID, 3), normal(*GRID, 3), normal(*GRID, 2)

    def affine(layer, values, square=False):
        kernel = np.asarray(layer.kernel)
        bias = np.asarray(layer.bias) if layer.use_bias else 0
        return values @ (kernel[0, 0] if square else kernel) + bias

    # A 1 x 1 kernel makes each masked convolution a matrix product.
    features = affine(block.vertical, vertical, True) + affine(block.from_condition, condition)
    row = affine(block.horizontal, horizontal, True) + affine(block.from_vertical, features)
    y = numpy_gate(row)
    expected = (
        vertical + numpy_gate(features),
        horizontal + affine(block.residual, y),
        affine(block.skip, y),
    )
    for output, reference in zip(block(vertical, horizontal, condition), expected, strict=True):
        np.testing.assert_allclose(output, reference, atol=1e-5)


def test_gate_by_hand():
    np.testing.assert_allclose(gate(np.float32([[0.5, 2.0]])), [[np.tanh(0.5) * sigmoid(2.0)]])


def test_dropout_acts_only_in_training():
    block = filled(GatedBlock(8, 3, 0.5, seed=0), (*GRID, 8), (*GRID, 8), (*GRID, 2))
    inputs = normal(*GRID, 8), normal(*GRID, 8, seed=1), normal(*GRID, 2)
    inference = [np.asarray(value) for value in block(*inputs)]
    for first, second in zip(inference, block(*inputs), strict=True):
        np.testing.assert_array_equal(first, second)
    trained = [np.asarray(value) for value in block(*inputs, training=True)]
    np.testing.assert_array_equal(inference[0], trained[0])
    assert (inference[1] != trained[1]).any()
    assert (inference[2] != trained[2]).any()


def test_row_attention_is_softmax_over_the_row_up_to_the_query():
    layer = filled(RowAttention(2), (*GRID, 4), (*GRID, 3))
    horizontal, condition = normal(*GRID, 4), normal(*GRID, 3, seed=1)
    with_position = np.concatenate([horizontal, condition], axis=-1)

    def dense(name, values):
        part = getattr(layer, name)
        return values @ np.asarray(part.kernel) + np.asarray(part.bias)

    query, key = dense("query", with_position), dense("key", with_position)
    value = dense("value", horizontal)
    outputs = np.zeros_like(horizontal)
    for batch, row, col in np.ndindex(GRID):
        for head in (slice(0, 2), slice(2, 4)):
            scores = key[batch, row, : col + 1, head] @ query[batch, row, col, head] / np.sqrt(2)
            weights = np.exp(scores) / np.exp(scores).sum()
            outputs[batch, row, col, head] = weights @ value[batch, row, : col + 1, head]
    np.testing.assert_allclose(
        layer(horizontal, condition), horizontal + dense("mix", outputs), atol=1e-4
    )


def test_untrained_attention_adds_nothing():
    horizontal = normal(*GRID, 4)
    np.testing.assert_array_equal(RowAttention(2)(horizontal, normal(*GRID, 3)), horizontal)


def test_condition_encodes_cell_and_position():
    layer = filled(Condition((4, 5), 3, 6), (None,))
    values = np.asarray(layer(np.float32([0.2, 0.2001, 0.9])))
    assert values.shape == (3, 4, 5, 3)
    assert np.abs(values[0] - values[1]).max() < 0.02 < np.abs(values[0] - values[2]).max()
    assert len(np.unique(values[0].reshape(20, 3).round(5), axis=0)) == 20


def test_condition_without_frequencies_ignores_the_position():
    layer = filled(Condition((4, 5), 3, 0), (None,))
    values = np.asarray(layer(np.float32([0.1, 0.9])))
    np.testing.assert_array_equal(values[0], values[1])
    assert not hasattr(layer.embed, "kernel")


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (MaskedConv2D(3, 3, "vertical", "B"), (2,)),
        (MaskedConv2D(3, 5, "horizontal", "A"), (2,)),
        (GatedBlock(4, 3, 0.1, seed=3), (4, 4, 2)),
        (RowAttention(2), (4, 2)),
        (Condition((4, 5), 3, 6), None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_layers_keep_keras_s_contract(layer, widths, tmp_path):
    """Configuration round trip, symbolic shapes, mixed precision, save and load."""
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    shapes = [(4, 5, width) for width in widths] if widths else [()]
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = layer(*inputs)
    model = keras.Model(inputs, outputs)
    for number, weight in enumerate(layer.trainable_variables):
        weight.assign(normal(*weight.shape, seed=number))
    values = [normal(2, *shape, seed=number) for number, shape in enumerate(shapes)]
    results = keras.tree.flatten(model(values))
    assert [tuple(result.shape[1:]) for result in results] == [
        tuple(each.shape[1:]) for each in keras.tree.flatten(outputs)
    ]
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    for one, other in zip(results, keras.tree.flatten(loaded(values)), strict=True):
        np.testing.assert_array_equal(one, other)
    mixed = type(layer).from_config({**config, "dtype": "mixed_bfloat16", "name": "mixed"})
    assert all(
        keras.backend.standardize_dtype(each.dtype) == "bfloat16"
        for each in keras.tree.flatten(mixed(*values))
    )


def test_positions_keep_float32_in_mixed_precision():
    layer = Condition((1, 1), 8, 8, dtype="mixed_bfloat16")
    layer.build((None,))
    inputs = []
    layer.embed = lambda cosines: inputs.append(np.asarray(cosines)) or np.zeros((1, 8), "float32")
    for position in (0.9, 0.9005):  # equal in bfloat16
        layer(np.float32([position]))
    assert abs(inputs[0] - inputs[1]).max() > 1e-3
