import numpy as np
import pytest
from helpers import python
from tiny_prior import CODES, GRID, tiny_pixelcnn

from brainslices.compilation import compiled
from brainslices.errors import InputError
from pixelcnn.logits import filter_logits, sample_from_logits
from pixelcnn.sampling import MASKED, Sampler, uniform_noise

pytestmark = pytest.mark.usefixtures("fresh_keras")

POSITIONS = np.float32([0.1, 0.5, 0.9])


@pytest.fixture(scope="module")
def sampler():
    """A sampler of a tiny model, whose weights no test changes."""
    return Sampler(tiny_pixelcnn())


def naive(model, positions, uniform, **limits):
    """Ancestral sampling by one full forward pass per code."""
    forward = compiled(
        lambda *inputs: model(dict(zip(("codes", "position"), inputs, strict=True))), model
    )
    codes = np.zeros(uniform.shape, "int32")
    for cell in model.scan_order:
        logits = np.asarray(forward(codes, positions))
        index = (slice(None), *np.unravel_index(cell, model.grid_shape))
        codes[index] = sample_from_logits(filter_logits(logits[index], **limits), uniform[index])
    return codes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "size", "first"), [((1, 1), 3, 5), ((1, 4), 3, 5), ((4, 1), 1, 1)], ids=str
)
def test_the_smallest_grids_and_a_single_sample(grid, size, first):
    changes = {"layers": 1, "attention_layers": 1}
    model = tiny_pixelcnn(grid=grid, kernel_size=size, first_kernel_size=first, **changes)
    drawn = Sampler(model)(POSITIONS[:1], uniform_noise(0, range(1), grid))
    expected = model.log_prob(drawn["codes"], POSITIONS[:1])
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_in_mixed_precision_samples(policy):
    model = tiny_pixelcnn(dtype=policy, layers=2, attention_layers=1)
    drawn = Sampler(model)(POSITIONS, uniform_noise(0, range(3), GRID))
    expected = model.log_prob(drawn["codes"], POSITIONS)
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=0.3)


@pytest.mark.parametrize(
    ("scan", "limits"),
    [
        pytest.param("raster", {}, marks=pytest.mark.slow),
        ("turned", {"temperature": 0.7, "top_k": 4, "top_p": 0.8}),
    ],
    ids=str,
)
def test_same_noise_gives_the_codes_of_naive_sampling(scan, limits):
    model, uniform = tiny_pixelcnn(scan=scan), uniform_noise(3, range(3), GRID)
    sample = Sampler(model, **limits)(POSITIONS, uniform)
    np.testing.assert_array_equal(sample["codes"], naive(model, POSITIONS, uniform, **limits))
    np.testing.assert_allclose(
        sample["log_prob"], model.log_prob(sample["codes"], POSITIONS), atol=1e-4
    )


def test_sampler_uses_the_current_weights():
    model, uniform = tiny_pixelcnn(layers=1, attention_layers=0), uniform_noise(0, range(3), GRID)
    sampler = Sampler(model)
    before = sampler(POSITIONS, uniform)["codes"]
    for weight in model.trainable_variables:
        weight.assign(-weight)
    after = sampler(POSITIONS, uniform)["codes"]
    assert (before != after).any()
    np.testing.assert_array_equal(after, naive(model, POSITIONS, uniform))


def test_a_sample_depends_on_seed_and_index_not_on_batches(sampler):
    positions = np.linspace(0, 1, 7, dtype="float32")

    def codes(seed, batch_size):
        batches = [batch["codes"] for batch in sampler.batches(positions, seed, batch_size)]
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        return np.concatenate(batches)

    whole = codes(5, 7)
    assert whole.shape == (7, *GRID)
    for batch_size in (3, 50):
        np.testing.assert_array_equal(codes(5, batch_size), whole)
    assert (codes(6, 7) != whole).any()
    assert len(np.unique(whole.reshape(7, -1), axis=0)) == 7


def test_observed_codes_stay_and_condition_those_after_them(sampler):
    model, uniform = sampler.model, uniform_noise(0, range(3), GRID)
    observed = np.full((3, *GRID), MASKED)
    observed[:, :2] = np.random.default_rng(0).integers(0, CODES, (3, 2, GRID[1]))
    observed[:, 3, 2] = 4
    sample = sampler(POSITIONS, uniform, observed)
    is_observed = observed != MASKED
    np.testing.assert_array_equal(sample["codes"][is_observed], observed[is_observed])
    unconditional = sampler(POSITIONS, uniform)["codes"]
    assert (sample["codes"][~is_observed] != unconditional[~is_observed]).any()
    np.testing.assert_allclose(
        sample["log_prob"], model.log_prob(sample["codes"], POSITIONS), atol=1e-4
    )


def test_grids_of_another_shape_and_positions_that_are_no_numbers_are_refused(sampler):
    uniform = uniform_noise(0, range(3), GRID)
    turned = np.full((3, *GRID[::-1]), MASKED)
    for name, arguments in (
        ("observed", (POSITIONS, uniform, turned)),
        ("uniform", (POSITIONS, uniform.transpose(0, 2, 1))),
        ("position", (np.full(3, np.nan), uniform)),
    ):
        with pytest.raises(InputError, match=f"`{name}` must"):
            sampler(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_partial_grids_grow_to_the_grids_of_a_call(sampler, rows):
    uniform, model = uniform_noise(0, range(3), GRID), sampler.model
    whole = sampler(POSITIONS, uniform)
    partial = list(sampler.partial_grids(POSITIONS, uniform, rows=rows))
    assert len(partial) == -(-model.scan_shape[0] // rows)
    for name, values in whole.items():
        np.testing.assert_array_equal(partial[-1][name], values)
    for step, grids in enumerate(partial, start=1):
        scans = np.asarray(model.to_scan(grids["codes"]))
        expected = np.asarray(model.to_scan(whole["codes"])).copy()
        expected[:, step * rows :] = MASKED
        np.testing.assert_array_equal(scans, expected)


@pytest.mark.slow
def test_other_limits_sample_as_a_new_sampler_and_compile_nothing(sampler):
    uniform, limits = uniform_noise(0, range(3), GRID), {"temperature": 0.4, "top_p": 0.7}
    other = sampler.with_limits(**limits)
    expected = Sampler(sampler.model, **limits)(POSITIONS, uniform)
    np.testing.assert_array_equal(other(POSITIONS, uniform)["codes"], expected["codes"])
    compiled_rows = other._compiled_rows
    count = compiled_rows.experimental_get_tracing_count()
    for temperature in (0.5, 0.6):
        sampler.with_limits(temperature, 0.8)(POSITIONS, uniform)
    assert compiled_rows.experimental_get_tracing_count() == count
    assert sampler.limits == {"temperature": 1.0, "top_k": None, "top_p": None}
    with pytest.raises(InputError, match="temperature=0"):
        sampler.with_limits(0)


@pytest.mark.parametrize(
    ("limits", "received"),
    [
        ({"temperature": 0}, "temperature=0."),
        ({"temperature": -1.0}, "temperature=-1.0."),
        ({"temperature": float("nan")}, "temperature=nan."),
        ({"temperature": float("inf")}, "temperature=inf."),
        ({"top_k": 0}, "top_k=0."),
        ({"top_k": 8}, "top_k=8."),
        ({"top_p": 0.0}, "top_p=0.0."),
        ({"top_p": 1.1}, "top_p=1.1."),
    ],
)
def test_invalid_limits_raise(sampler, limits, received):
    with pytest.raises(InputError) as error:
        Sampler(sampler.model, **limits)
    assert f"`{next(iter(limits))}` must be" in str(error.value)
    assert f"Received: {received}" in str(error.value)


def test_invalid_observed_codes_raise(sampler):
    for code in (MASKED - 1, CODES):
        with pytest.raises(InputError, match=f"`observed` .* Received: values from .*{code}"):
            sampler(POSITIONS, uniform_noise(0, range(3), GRID), np.full((3, *GRID), code))


@pytest.mark.slow
@pytest.mark.long
def test_jax_samples_the_same_codes(tmp_path):
    pytest.importorskip("jax")
    model, uniform = tiny_pixelcnn(scan="turned"), uniform_noise(3, range(3), GRID)
    drawn = Sampler(model)(POSITIONS, uniform)
    model.save(tmp_path / "model.keras")
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import keras, numpy as np\n"
        "from pixelcnn import PixelCNN, Sampler\n"
        "from pixelcnn.sampling import uniform_noise\n"
        f"model = keras.saving.load_model({str(tmp_path / 'model.keras')!r})\n"
        f"drawn = Sampler(model)({POSITIONS.tolist()}, uniform_noise(3, range(3), {GRID}))\n"
        f"np.savez({str(tmp_path / 'drawn.npz')!r}, **drawn)\n"
    )
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "drawn.npz") as other:
        np.testing.assert_array_equal(other["codes"], drawn["codes"])
        np.testing.assert_allclose(other["log_prob"], drawn["log_prob"], atol=1e-4)
