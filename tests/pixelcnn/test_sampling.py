import keras
import numpy as np
import pytest
from helpers import python
from tiny_prior import CODES, GRID, inputs, made

import pixelcnn.sampling
from brainslices.errors import InputError
from pixelcnn.sampling import (
    MASKED,
    RowCache,
    Sampler,
    complete,
    draw,
    filter_logits,
    most_likely_position,
    uniform_noise,
)

pytestmark = pytest.mark.usefixtures("fresh_keras")

POSITIONS = np.float32([0.1, 0.5, 0.9])


def softmax(logits):
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return chances / chances.sum(axis=-1, keepdims=True)


def logits_of(count=5, codes=9, seed=0):
    return np.random.default_rng(seed).normal(scale=2, size=(count, codes)).astype("float32")


def naive(model, positions, uniform, **limits):
    """Ancestral sampling by one full forward pass for each code."""
    codes = np.zeros(uniform.shape, "int32")
    for cell in model.scan_order:
        logits = np.asarray(model({"codes": codes, "position": positions}))
        place = (slice(None), *np.unravel_index(cell, model.grid_shape))
        codes[place] = draw(filter_logits(logits[place], **limits), uniform[place])
    return codes


def test_draws_follow_the_probabilities():
    logits = np.repeat(logits_of(1), 20_000, axis=0)
    uniform = np.random.default_rng(1).random(len(logits)).astype("float32")
    counts = np.bincount(np.asarray(draw(logits, uniform)), minlength=9) / len(logits)
    np.testing.assert_allclose(counts, softmax(logits[0]), atol=0.012)


def test_no_chance_draws_what_is_impossible():
    logits = np.full((4, 6), -np.inf, "float32")
    logits[:, 2] = logits[:, 4] = 0
    uniform = np.float32([0, 0.4999, 0.5001, np.nextafter(np.float32(1), np.float32(0))])
    assert np.asarray(draw(logits, uniform)).tolist() == [2, 2, 4, 4]


def test_temperature_towards_zero_is_argmax():
    logits = logits_of(50)
    uniform = np.random.default_rng(0).random(50).astype("float32")
    for temperature in (1e-3, 1e-30, 1e-50):
        drawn = draw(filter_logits(logits, temperature), uniform)
        np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


def test_the_smallest_nucleus_is_the_likeliest_code():
    logits = logits_of(50)
    uniform = np.random.default_rng(0).random(50).astype("float32")
    drawn = draw(filter_logits(logits, top_p=1e-50), uniform)
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


def test_temperature_flattens_and_sharpens():
    logits = logits_of(3)
    for temperature in (0.5, 2.0):
        np.testing.assert_allclose(
            softmax(np.asarray(filter_logits(logits, temperature))),
            softmax(logits / temperature),
            rtol=1e-4,
        )


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_top_k_keeps_the_likeliest(top_k):
    logits = logits_of()
    kept = np.isfinite(np.asarray(filter_logits(logits, top_k=top_k)))
    for row, allowed in zip(logits, kept, strict=True):
        assert set(np.nonzero(allowed)[0]) == set(np.argsort(-row)[:top_k])


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it(top_p):
    logits = logits_of()
    kept = np.isfinite(np.asarray(filter_logits(logits, top_p=top_p)))
    for row, allowed in zip(logits, kept, strict=True):
        order = np.argsort(-row)
        reached = np.cumsum(softmax(row.astype("float64"))[order])
        count = len(row) if top_p == 1 else np.argmax(reached >= top_p) + 1
        assert set(np.nonzero(allowed)[0]) == set(order[:count])


@pytest.mark.parametrize(
    "changes",
    [
        {"scan": "raster", "attention_layers": 0},
        {"scan": "turned"},
        {"scan": "folded"},
        {"kernel_size": 5, "first_kernel_size": 3},
        {"kernel_size": 1, "first_kernel_size": 7},
        {"kernel_size": 3, "first_kernel_size": 1},
        {"position_frequencies": 0},
    ],
    ids=str,
)
def test_cached_logits_are_the_full_forward_pass_s(changes):
    model, given = made(**changes), inputs(2)
    full = np.asarray(model.to_scan(model(given)))
    codes = np.asarray(model.to_scan(given["codes"]))
    cache = RowCache(model, given["position"])
    above = cache.start()
    for row in range(cache.rows):
        from_above, above = cache.vertical(row, above)
        memory = cache.start_row()
        for col in range(cache.cols):
            logits, memory = cache.logits(row, col, from_above[:, :, col], memory)
            np.testing.assert_allclose(logits, full[:, row, col], atol=1e-4)
            memory = cache.append_code(memory, codes[:, row, col])
        above = cache.append_row(above, codes[:, row])


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("kernels", [(1, 1), (3, 5)], ids=str)
def test_the_smallest_grids_and_a_single_sample(grid, kernels):
    size, first = kernels
    model = made(grid=grid, kernel_size=size, first_kernel_size=first)
    drawn = Sampler(model)(POSITIONS[:1], uniform_noise(0, range(1), grid))
    expected = model.log_prob(drawn["codes"], POSITIONS[:1])
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_in_mixed_precision_samples(policy):
    model = made(dtype=policy)
    drawn = Sampler(model)(POSITIONS, uniform_noise(0, range(3), GRID))
    expected = model.log_prob(drawn["codes"], POSITIONS)
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=0.3)


@pytest.mark.parametrize(
    ("scan", "limits"),
    [("raster", {}), ("turned", {"temperature": 0.7, "top_k": 4}), ("folded", {"top_p": 0.8})],
    ids=str,
)
def test_same_noise_gives_the_codes_of_naive_sampling(scan, limits):
    model, uniform = made(scan=scan), uniform_noise(3, range(3), GRID)
    drawn = Sampler(model, **limits)(POSITIONS, uniform)
    np.testing.assert_array_equal(drawn["codes"], naive(model, POSITIONS, uniform, **limits))
    np.testing.assert_allclose(
        drawn["log_prob"], model.log_prob(drawn["codes"], POSITIONS), atol=1e-4
    )


def test_sampler_uses_the_weights_as_they_are_now():
    model, uniform = made(), uniform_noise(0, range(3), GRID)
    sampler = Sampler(model)
    before = sampler(POSITIONS, uniform)["codes"]
    for weight in model.trainable_variables:
        weight.assign(-weight)
    after = sampler(POSITIONS, uniform)["codes"]
    assert (before != after).any()
    np.testing.assert_array_equal(after, naive(model, POSITIONS, uniform))


def test_a_sample_depends_on_seed_and_number_not_on_batches():
    sampler, positions = Sampler(made()), np.linspace(0, 1, 7, dtype="float32")

    def codes(seed, batch_size):
        found = list(sampler.batches(positions, seed, batch_size))
        assert [len(each["codes"]) for each in found[:-1]] == [batch_size] * (len(found) - 1)
        return np.concatenate([each["codes"] for each in found])

    whole = codes(5, 7)
    assert whole.shape == (7, *GRID)
    for batch_size in (1, 3, 50):
        np.testing.assert_array_equal(codes(5, batch_size), whole)
    assert (codes(6, 7) != whole).any()
    assert len(np.unique(whole.reshape(7, -1), axis=0)) == 7


@pytest.mark.parametrize("scan", ["raster", "turned"])
def test_given_codes_are_kept_and_steer_what_follows(scan):
    model, uniform = made(scan=scan), uniform_noise(0, range(3), GRID)
    given = np.full((3, *GRID), MASKED)
    given[:, :2] = np.random.default_rng(0).integers(0, CODES, (3, 2, GRID[1]))
    given[:, 3, 2] = 4
    sampler = Sampler(model)
    drawn = sampler(POSITIONS, uniform, given)
    known = given != MASKED
    np.testing.assert_array_equal(drawn["codes"][known], given[known])
    again = naive(model, POSITIONS, uniform)
    assert (drawn["codes"][~known] != again[~known]).any()
    np.testing.assert_allclose(
        drawn["log_prob"], model.log_prob(drawn["codes"], POSITIONS), atol=1e-4
    )


def test_completion_weighs_the_codes_known_further_on(monkeypatch):
    """Of 2 x 2 codes the last follows the first nine times of ten, so it tells the first."""
    monkeypatch.setattr(pixelcnn.sampling, "CANDIDATES", 40)
    rng, count = np.random.default_rng(0), 512
    grids = rng.integers(0, 2, (count, 2, 2)).astype("int32")
    grids[:, 1, 1] = np.where(rng.random(count) < 0.9, grids[:, 0, 0], 1 - grids[:, 0, 0])
    model = made((2, 2), 2, fill=False, attention_layers=0)
    model.compile(keras.optimizers.Adam(0.02))
    position = np.full(count, 0.5, "float32")
    model.fit({"codes": grids, "position": position}, epochs=60, batch_size=count, verbose=0)
    known = np.array([[MASKED, MASKED], [MASKED, 1]])
    sampler = Sampler(model)
    found = [complete(sampler, known, 0.5, 1, seed)["codes"][0] for seed in range(60)]
    assert (np.array(found)[:, 1, 1] == 1).all()
    assert 0.8 < np.mean(found, axis=0)[0, 0] <= 1
    # Blind to the code known last it is even.
    given = np.broadcast_to(known, (256, 2, 2))
    blind = Sampler(model)(position[:256], uniform_noise(0, range(256), (2, 2)), given)["codes"]
    assert 0.4 < blind[:, 0, 0].mean() < 0.6


def test_completions_are_reproducible_and_differ():
    sampler, known = Sampler(made()), np.full(GRID, MASKED)
    known[:2] = 3
    first = complete(sampler, known, 0.4, 3, seed=1)
    assert first["codes"].shape == (3, *GRID)
    assert (first["codes"][:, :2] == 3).all()
    assert len(np.unique(first["codes"].reshape(3, -1), axis=0)) == 3
    np.testing.assert_array_equal(first["codes"], complete(sampler, known, 0.4, 3, 1)["codes"])


def test_likeliest_position_is_the_one_that_explains_the_codes():
    """A prior whose logits follow the position: low heads hold code 0, high ones code 1."""
    model = made(codes=2, fill=False, attention_layers=0)
    model.compile("adam")
    positions = np.repeat(np.float32([0, 1]), 16)
    codes = np.broadcast_to(positions[:, None, None], (32, *GRID)).astype("int32")
    model.optimizer.learning_rate = 0.01
    model.fit({"codes": codes, "position": positions}, epochs=40, batch_size=32, verbose=0)
    known = np.full(GRID, MASKED)
    sampler, levels = Sampler(model), np.float32([0, 1])
    for code in (0, 1):
        known[-1] = code
        assert most_likely_position(sampler, known, levels, seed=0) == code


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"temperature": 0}, "`temperature` must be a positive number. Received: temperature=0."),
        ({"temperature": -1.0}, "Received: temperature=-1.0."),
        ({"temperature": float("nan")}, "Received: temperature=nan."),
        ({"temperature": float("inf")}, "Received: temperature=inf."),
        ({"top_k": 0}, "`top_k` must be from 1 to 7, the size of the codebook. Received: top_k=0."),
        ({"top_k": 8}, "Received: top_k=8."),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1. Received: top_p=0.0."),
        ({"top_p": 1.1}, "Received: top_p=1.1."),
    ],
)
def test_wrong_limits_are_refused(limits, message):
    with pytest.raises(InputError) as error:
        Sampler(made(), **limits)
    assert message in str(error.value)


@pytest.mark.slow
def test_jax_draws_the_same_codes(tmp_path):
    pytest.importorskip("jax")
    model, uniform = made(scan="turned"), uniform_noise(3, range(3), GRID)
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
