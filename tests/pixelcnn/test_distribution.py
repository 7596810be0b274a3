import itertools

import keras
import numpy as np
import pytest
from tiny_prior import CODES, GRID, tiny_inputs, tiny_pixelcnn

from brainslices.errors import InputError

tf = pytest.importorskip("tensorflow")
tfp = pytest.importorskip("tensorflow_probability")
if keras.backend.backend() != "tensorflow":
    pytest.skip("CodePrior needs TensorFlow", allow_module_level=True)

from pixelcnn.conditions import Variable  # noqa: E402
from pixelcnn.distribution import CodePrior  # noqa: E402
from pixelcnn.sampling import BATCH_SIZE, Sampler  # noqa: E402

pytestmark = pytest.mark.usefixtures("fresh_keras")

LIMITS = {"temperature": 0.5}, {"top_k": 1}, {"top_p": 0.7}
SMALLEST = {"layers": 1, "attention_layers": 0}
ALL_GRIDS = np.array(list(itertools.product((0, 1), repeat=4)), "int32").reshape(16, 1, 2, 2)


@pytest.fixture(scope="module")
def model():
    return tiny_pixelcnn(**SMALLEST)


def frequencies(samples):
    """Frequency of each of the 16 tiny grids among samples, for each batch member."""
    numbers = np.asarray(samples).reshape(*samples.shape[:-2], 4) @ [8, 4, 2, 1]
    return np.array([np.mean(numbers == k, axis=0) for k in range(16)])


@pytest.mark.slow
def test_shapes_follow_tfp(model):
    prior = CodePrior(model, position=[[0.1, 0.5, 0.9]])
    assert prior.batch_shape == prior.batch_shape_tensor().numpy().tolist() == [1, 3]
    assert prior.event_shape == prior.event_shape_tensor().numpy().tolist() == list(GRID)
    assert prior.dtype == tf.int32
    assert prior.sample(seed=(0, 0)).shape == (1, 3, *GRID)
    codes = prior.sample((2, 4), seed=(0, 0))
    assert codes.shape == (2, 4, 1, 3, *GRID)
    assert prior.log_prob(codes).shape == (2, 4, 1, 3)
    assert CodePrior(model, 0.5).sample(5, seed=(0, 0)).shape == (5, *GRID)
    assert "batch_shape=[1, 3], event_shape=[4, 5], dtype=int32" in str(prior)


def test_log_prob_of_more_grids_than_a_batch_is_that_of_each(model):
    codes = np.random.default_rng(0).integers(0, CODES, (BATCH_SIZE + 3, 2, *GRID))
    prior = CodePrior(model, [0.2, 0.7])
    each = [prior.log_prob(grids) for grids in codes]
    np.testing.assert_allclose(prior.log_prob(codes.astype("uint16")), each, rtol=1e-5)
    assert prior.log_prob(codes[:0]).shape == (0, 2)


def test_log_prob_is_minus_the_summed_training_loss():
    model, given = tiny_pixelcnn(dropout=0.0), tiny_inputs(6)
    log_prob = CodePrior(model, given["position"]).log_prob(given["codes"])
    model.compile("sgd")
    loss = model.evaluate(given, batch_size=6, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(-np.mean(log_prob) / np.prod(GRID), loss, rtol=1e-5)
    logits = model(given)
    oracle = tfp.distributions.Categorical(logits=logits).log_prob(given["codes"])
    np.testing.assert_allclose(log_prob, tf.reduce_sum(oracle, axis=(1, 2)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [{}, *(pytest.param(each, marks=pytest.mark.long) for each in LIMITS)],
    ids=str,
)
def test_probabilities_are_those_of_the_samples(limits):
    prior = CodePrior(tiny_pixelcnn((2, 2), 2, **SMALLEST), [0.1, 0.9], **limits)
    chances = np.exp(prior.log_prob(ALL_GRIDS))
    np.testing.assert_allclose(chances.sum(axis=0), 1, rtol=1e-5)
    shares = frequencies(prior.sample(3000, seed=(1, 2)))
    np.testing.assert_allclose(shares, chances, atol=0.04)
    assert (shares[chances == 0] == 0).all()


@pytest.mark.slow
def test_mean_and_entropy_by_tfp_s_monte_carlo():
    prior = CodePrior(tiny_pixelcnn((2, 2), 2, **SMALLEST), 0.3)
    chances = np.exp(prior.log_prob(ALL_GRIDS[:, 0]))
    exact = -np.sum(chances * np.log(chances))
    estimate = tfp.monte_carlo.expectation(
        lambda codes: -prior.log_prob(codes),
        samples=prior.sample(4000, seed=(3, 4)),
        log_prob=prior.log_prob,
        use_reparameterization=False,
    )
    np.testing.assert_allclose(estimate, exact, rtol=0.05)


@pytest.mark.slow
def test_seeds_follow_tfp(model):
    prior = CodePrior(model, [0.2, 0.8])
    first = prior.sample(3, seed=(4, 5))
    np.testing.assert_array_equal(first, prior.sample(3, seed=(4, 5)))
    assert (first != prior.sample(3, seed=(4, 6))).numpy().any()
    tf.random.set_seed(1)
    by_number = prior.sample(3, seed=7)
    tf.random.set_seed(1)
    np.testing.assert_array_equal(by_number, prior.sample(3, seed=7))
    assert (prior.sample(3) != prior.sample(3)).numpy().any()


def test_samples_equal_those_of_the_sampler(model):
    prior = CodePrior(model, [0.2, 0.8])
    uniform = tf.random.stateless_uniform((6, *GRID), tfp.random.sanitize_seed((4, 5)))
    codes = Sampler(model)(np.tile(np.float32([0.2, 0.8]), 3), uniform.numpy())["codes"]
    np.testing.assert_array_equal(prior.sample(3, seed=(4, 5)), codes.reshape(3, 2, *GRID))


@pytest.mark.slow
def test_it_composes_with_the_rest_of_tfp():
    model = tiny_pixelcnn((2, 2), 2, **SMALLEST)
    tfd = tfp.distributions
    joint = tfd.JointDistributionSequential(
        [tfd.Uniform(0.0, 1.0), lambda position: CodePrior(model, position)]
    )
    position, codes = joint.sample(5, seed=(0, 1))
    assert position.shape == (5,)
    assert codes.shape == (5, 2, 2)
    np.testing.assert_allclose(
        joint.log_prob(position, codes), CodePrior(model, position).log_prob(codes), rtol=1e-5
    )
    independent = tfd.Independent(CodePrior(model, [0.1, 0.9]), reinterpreted_batch_ndims=1)
    assert independent.event_shape == [2, 2, 2]
    assert independent.log_prob(independent.sample(4, seed=(0, 1))).shape == (4,)
    mixture = tfd.MixtureSameFamily(tfd.Categorical(probs=[0.3, 0.7]), CodePrior(model, [0.1, 0.9]))
    chances = np.exp(mixture.log_prob(ALL_GRIDS[:, 0]))
    parts = np.exp(CodePrior(model, [0.1, 0.9]).log_prob(ALL_GRIDS))
    np.testing.assert_allclose(chances, parts @ [0.3, 0.7], rtol=1e-4)


@pytest.mark.slow
def test_copies_slicing_and_graphs():
    prior = CodePrior(tiny_pixelcnn((2, 2), 2, **SMALLEST), [0.1, 0.9], temperature=0.8, top_k=2)
    copy = prior.copy(position=0.4)
    assert copy.batch_shape == []
    assert (copy.parameters["temperature"], copy.parameters["top_k"]) == (0.8, 2)
    np.testing.assert_allclose(
        prior[1].log_prob(ALL_GRIDS[:, 0]), prior.log_prob(ALL_GRIDS)[:, 1], rtol=1e-5
    )
    sample = tf.function(lambda: prior.sample(4, seed=(0, 1)))
    np.testing.assert_array_equal(sample(), prior.sample(4, seed=(0, 1)))


def test_validate_args_checks_positions_and_codes(model):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Positions must be in \[0, 1\]"):
        CodePrior(model, [0.5, 1.5], validate_args=True)
    prior = CodePrior(model, 0.5, validate_args=True)
    for code, message in ((-1, "at least 0"), (CODES, f"at most {CODES - 1}")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            prior.log_prob(np.full(GRID, code, "int32"))


def test_another_backend_raises(model, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND='jax'"):
        CodePrior(model, 0.5)


@pytest.fixture(scope="module")
def conditional():
    variables = (Variable("age", 40, 80), Variable("sex", categories=("F", "M")))
    options = {"conditions": ("age", "sex"), "condition_variables": variables}
    return tiny_pixelcnn((2, 2), 2, **SMALLEST, **options)


@pytest.mark.slow
def test_conditions_are_part_of_the_batch(conditional):
    conditions = [conditional.encode_conditions({"age": age}) for age in (45, 75)]
    prior = CodePrior(conditional, [[0.5]] * 3, guidance=2.5, conditions=conditions)
    assert prior.batch_shape == [3, 2]
    log_prob = prior.log_prob(ALL_GRIDS[:, None])
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=0), np.ones((3, 2)), rtol=1e-5)
    assert np.abs(log_prob[:, 0, 0] - log_prob[:, 0, 1]).max() > 1e-3
    older = prior[0, 1]
    assert older.batch_shape == []
    np.testing.assert_allclose(older.log_prob(ALL_GRIDS[:, 0]), log_prob[:, 0, 1], rtol=1e-5)
    sampled = frequencies(prior.sample(1000, seed=(0, 1)))
    np.testing.assert_allclose(sampled, np.exp(log_prob), atol=0.06)


def test_conditions_of_another_width_are_refused(conditional):
    with pytest.raises(InputError, match="`conditions` must have 2 columns"):
        CodePrior(conditional, 0.5, conditions=[0.5])
    with pytest.raises(InputError, match="`conditions` must have 0 columns"):
        CodePrior(tiny_pixelcnn(**SMALLEST), 0.5, conditions=[0.5])
