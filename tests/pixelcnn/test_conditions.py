import dataclasses
import logging

import numpy as np
import pytest
from helpers import tiny_prior_config, tiny_prior_training
from tiny_prior import tiny_inputs, tiny_pixelcnn

from brainslices.data.code_grids import CodeGrids, SplitCodes
from brainslices.errors import InputError
from brainslices.runs.run import Run
from pixelcnn.conditions import (
    UNKNOWN,
    Variable,
    as_variables,
    encode_request,
    encode_subjects,
    expand_request,
    find_variables,
    parse_request,
)
from pixelcnn.logits import filter_logits, sample_from_logits
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.training import CodeBatches, train

pytestmark = pytest.mark.usefixtures("fresh_keras")

VARIABLES = (Variable("age", 40, 80), Variable("sex", categories=("F", "M")))
TABLE = {
    "a": {"age": "40", "sex": "F", "blank": "", "same": "1"},
    "b": {"age": "80", "sex": "M", "blank": "", "same": "1"},
    "c": {"age": "", "sex": "", "blank": "", "same": "1"},
    "late": {"age": "95", "sex": "X", "blank": "2", "same": "3"},
}


@pytest.fixture
def model():
    return tiny_pixelcnn(conditions=("age", "sex"), condition_variables=VARIABLES)


def test_variables_are_those_of_the_training_subjects():
    assert (
        find_variables(("age", "sex"), TABLE, np.array(["a", "b", "b", "c", "gone"])) == VARIABLES
    )
    encoded = encode_subjects(VARIABLES, TABLE, ["b", "c", "late", "gone"])
    unknown = [UNKNOWN, UNKNOWN]
    np.testing.assert_allclose(encoded, [[0.75, 1], unknown, [0.9375, UNKNOWN], unknown])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weight", "columns of the table of subjects: age, sex, blank, same"),
        ("blank", "at least two values .* blank with blanks alone"),
        ("same", "at least two values .* same with 1 alone"),
    ],
)
def test_columns_without_two_values_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        find_variables((name,), TABLE, ["a", "b", "c"])


def test_archive_without_table_is_refused():
    with pytest.raises(InputError, match="--subject-table"):
        find_variables(("age",), {}, ["a"])


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"weight": 3}, "the prior has age, sex"),
        ({"sex": "X"}, "must be one of F, M"),
        ({"age": "old"}, "must be a number from 20 to 100; training had 40 to 80"),
        ({"age": 101}, "must be a number from 20 to 100"),
    ],
)
def test_requests_that_training_does_not_cover_are_refused(requested, message):
    with pytest.raises(InputError, match=message):
        encode_request(VARIABLES, requested)


def test_prior_without_conditions_is_asked_for_none():
    with pytest.raises(InputError, match="trained without conditions"):
        encode_request((), {"age": 80})


def test_number_outside_of_the_trained_range_warns(caplog):
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encode_request(VARIABLES, {"age": 90}), [0.875, UNKNOWN])
    assert "trained range, 40 to 80" in caplog.text


@pytest.mark.parametrize("texts", [("age",), ("age=",), ("=3",), ("age=1", "age=2")])
def test_requests_need_one_value_for_each_name(texts):
    with pytest.raises(InputError, match="name=value"):
        parse_request(texts)


def test_variables_must_be_those_that_are_named():
    with pytest.raises(InputError, match="condition_variables"):
        as_variables(VARIABLES, ("age",))


def test_each_condition_changes_the_logits_and_none_is_unknown(model):
    inputs = tiny_inputs(1)
    names = ({}, {"age": 40}, {"age": 80}, {"sex": "F"}, {"sex": "M"}, {"age": 40, "sex": "F"})
    positions = [model.with_conditions(inputs["position"], requested) for requested in names]
    logits = [np.asarray(model({**inputs, "position": position})) for position in positions]
    for first in range(len(names)):
        for second in range(first):
            assert np.abs(logits[first] - logits[second]).max() > 1e-3
    np.testing.assert_array_equal(logits[0], model(inputs))


def test_cached_sampling_has_the_model_s_log_prob(model):
    position = model.with_conditions(np.float32([0.2, 0.7]), {"age": 75, "sex": "M"})
    drawn = Sampler(model)(position, uniform_noise(0, range(2), model.grid_shape))
    expected = model.log_prob(drawn["codes"], position)
    np.testing.assert_allclose(drawn["log_prob"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guided_samples_follow_the_guided_logits(model, guidance):
    """Each code is the one that the combined logits of two full passes give for its noise."""
    position = model.with_conditions(np.float32([0.2, 0.7]), {"age": 75, "sex": "M"})
    noise = uniform_noise(0, range(2), model.grid_shape)
    drawn = Sampler(model, guidance=guidance)(position, noise)
    codes = drawn["codes"]
    conditional = np.asarray(model({"codes": codes, "position": position}))
    unknown = np.asarray(model({"codes": codes, "position": position[:, 0]}))
    guided = unknown + guidance * (conditional - unknown)
    flat = filter_logits(guided.reshape(-1, model.num_embeddings))
    expected = sample_from_logits(flat, noise.reshape(-1))
    np.testing.assert_array_equal(codes.reshape(-1), expected)
    np.testing.assert_allclose(drawn["log_prob"], model.log_prob(codes, position), atol=1e-4)


@pytest.mark.slow
def test_guidance_of_unknown_conditions_changes_nothing(model):
    position, noise = np.float32([0.2, 0.7]), uniform_noise(0, range(2), model.grid_shape)
    plain = Sampler(model)
    guided = plain.with_limits(guidance=2.0)(position, noise)["codes"]
    np.testing.assert_array_equal(guided, plain(position, noise)["codes"])


@pytest.mark.slow
def test_other_guidance_samples_as_a_new_sampler_and_compiles_nothing(model):
    position = model.with_conditions(np.float32([0.2, 0.7]), {"age": 75, "sex": "M"})
    noise, sampler = uniform_noise(0, range(2), model.grid_shape), Sampler(model)
    expected = Sampler(model, guidance=3.0)(position, noise)["codes"]
    assert (sampler(position, noise)["codes"] != expected).any()
    np.testing.assert_array_equal(
        sampler.with_limits(guidance=3.0)(position, noise)["codes"], expected
    )
    count = sampler._compiled_rows.experimental_get_tracing_count()
    for guidance in (1.0, 0.5, 2.0):
        sampler.with_limits(guidance=guidance)(position, noise)
    assert sampler._compiled_rows.experimental_get_tracing_count() == count


@pytest.mark.parametrize("guidance", [-1.0, np.nan, np.inf])
def test_guidance_must_be_a_number_and_needs_conditions(model, guidance):
    with pytest.raises(InputError, match="`guidance` must be a finite number, at least 0"):
        Sampler(model).with_limits(guidance=guidance)
    with pytest.raises(InputError, match="needs a prior with conditions"):
        Sampler(tiny_pixelcnn(), guidance=2.0)


def test_one_condition_may_have_several_values():
    assert expand_request(VARIABLES, ["sex=F"]) == {"": {"sex": "F"}}
    assert expand_request(VARIABLES, ["age=45, 60", "sex=F"]) == {
        "age 45": {"age": "45", "sex": "F"},
        "age 60": {"age": "60", "sex": "F"},
    }
    comma = (Variable("site", categories=("a,b", "c")),)
    assert expand_request(comma, ["site=a,b"]) == {"": {"site": "a,b"}}
    with pytest.raises(InputError, match="not for age and sex"):
        expand_request(VARIABLES, ["age=45,60", "sex=F,M"])


def test_file_keeps_the_variables(model, tmp_path):
    model.save(tmp_path / "model.keras")
    import keras

    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.condition_variables == VARIABLES
    position = model.with_conditions([0.5], {"age": 60})
    codes = tiny_inputs(1)["codes"]
    np.testing.assert_allclose(loaded.log_prob(codes, position), model.log_prob(codes, position))


def split(count, seed):
    """Subjects a and b in turn, whose codes are all 0 or all 1 but for the first."""
    codes = np.zeros((count, 3, 3), "uint16")
    codes[1::2] = 1
    codes[:, 0, 0] = np.random.default_rng(seed).integers(0, 2, count)
    names = np.array([f"{seed}_{number}" for number in range(count)])
    subjects = np.array(["a", "b"] * (count // 2))
    return SplitCodes(codes, names, subjects, np.full(count, 0.5, "float32"))


@pytest.fixture
def grids():
    counts = {"train": 40, "validate": 8, "test": 8}
    return CodeGrids(
        splits={name: split(count, seed) for seed, (name, count) in enumerate(counts.items())},
        variants=np.zeros((0, 40, 3, 3), "uint16"),
        num_embeddings=4,
        grid_shape=(3, 3),
        image_shape=(24, 24),
        vqvae_hash="a" * 64,
        vqvae_run="/runs/gone",
        archive_hash="c" * 64,
    )


CONFIG = tiny_prior_config(first_kernel_size=3, conditions=("age", "sex"))
TRAINING = tiny_prior_training(epochs=12, learning_rate=0.03, optimizer="adam", variants=0)


@pytest.mark.slow
def test_training_learns_conditions_and_resumes_only_with_them(grids, tmp_path):
    metrics = train(grids, tmp_path / "run", CONFIG, TRAINING, TABLE)
    right = metrics["splits"]["test"]["nats_per_code"]
    assert right < metrics["nats_per_code_unknown_conditions"]
    assert right < metrics["nats_per_code_shuffled_conditions"] - 0.1
    assert PixelCNN.from_run(Run(tmp_path / "run")).condition_variables == VARIABLES
    other = {**TABLE, "a": {**TABLE["a"], "sex": "M"}, "b": {**TABLE["b"], "sex": "F"}}
    with pytest.raises(InputError, match="table of subjects"):
        train(grids, tmp_path / "run", CONFIG, TRAINING, other)
    with pytest.raises(InputError, match="conditions="):
        train(grids, tmp_path / "run", dataclasses.replace(CONFIG, conditions=()), TRAINING)


def test_hidden_conditions_are_a_function_of_seed_epoch_and_step(grids):
    inputs = np.column_stack([np.full(40, 0.5), np.full((40, 2), 0.75)]).astype("float32")
    conditioned = dataclasses.replace(grids.splits["train"], positions=inputs)
    plain = [batch for (batch,) in CodeBatches(grids.splits["train"], 8, 3)]
    whole, again = (
        [batch for (batch,) in CodeBatches(conditioned, 8, 3, first_step=step)] for step in (0, 2)
    )
    for one, other in zip(whole[2:], again, strict=True):
        np.testing.assert_array_equal(one["position"], other["position"])
    assert (inputs[:, 1:] == 0.75).all()
    for one, other in zip(whole, plain, strict=True):
        np.testing.assert_array_equal(one["codes"], other["codes"])


def test_conditions_are_hidden_one_by_one_and_all_together(grids):
    """Each with probability 0.1, and all with 0.1, which classifier-free guidance needs."""
    inputs = np.column_stack([np.full(40, 0.5), np.full((40, 2), 0.75)]).astype("float32")
    split = dataclasses.replace(grids.splits["train"], positions=inputs)
    epochs = (CodeBatches(split, 8, 3, epoch=epoch) for epoch in range(50))
    seen = np.concatenate([batch["position"] for epoch in epochs for (batch,) in epoch])
    hidden = seen[:, 1:] == UNKNOWN
    assert (seen[:, 0] == 0.5).all()
    np.testing.assert_allclose(hidden.mean(axis=0), 0.1 + 0.9 * 0.1, atol=0.035)
    assert hidden.all(axis=1).mean() == pytest.approx(0.1 + 0.9 * 0.1**2, abs=0.028)
