import itertools
from dataclasses import replace

import keras_tuner
import pytest
from helpers import ROOT

from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.spaces import SPACES, codebook, declare, full, load_space
from tuning.trial import configuration, folder_of
from vqvae.config import DEFAULT


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_defaults_are_the_default_preset(space):
    assert space(keras_tuner.HyperParameters()) == (DEFAULT.model, DEFAULT.training)


def test_codebook_sizes_are_powers_of_two_and_come_first():
    for space in SPACES.values():
        first = declare(space).space[0]
        assert (first.name, first.values) == (
            "num_embeddings",
            [2**power for power in range(4, 13)],
        )


@pytest.mark.parametrize("space", [codebook, full])
def test_every_value_makes_a_configuration(space):
    """Choices all with all; of the others both ends."""
    dimensions = declare(space).space
    ends = [
        [each.min_value, each.max_value] if hasattr(each, "min_value") else each.values
        for each in dimensions
    ]
    seen = set()
    for values in itertools.islice(itertools.product(*ends), 0, None, 7):
        hp = keras_tuner.HyperParameters()
        for dimension, value in zip(dimensions, values, strict=True):
            hp.Fixed(dimension.name, value)
        model, training = space(hp)
        told = dict(zip([each.name for each in dimensions], values, strict=True))
        assert model.num_embeddings == told["num_embeddings"]
        assert model.downsampling == told["downsampling"]
        seen.add((model, training))
    assert len(seen) == len(list(itertools.islice(itertools.product(*ends), 0, None, 7)))


def test_fixed_dimensions_keep_their_value(tmp_path):
    hp = declare(full, ("num_embeddings=64", "learning_rate=0.002", "magnification=1"))
    assert [each.name for each in hp.space][:3] == [
        *("learning_rate", "magnification", "num_embeddings"),
    ]
    model, training = full(hp)
    assert (model.num_embeddings, model.magnification, training.learning_rate) == (64, 1.0, 0.002)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        keras_tuner.Objective("score", "min"), 5, hyperparameters=hp, tune_new_entries=False
    )
    oracle._set_project_dir(str(tmp_path), "trials")
    for _ in range(5):
        values = oracle.create_trial("one").hyperparameters.values
        assert (values["num_embeddings"], values["learning_rate"]) == (64, 0.002)
        oracle.ongoing_trials.clear()


@pytest.mark.parametrize(
    ("fix", "said"),
    [
        (("num_embeddings=100",), "`num_embeddings` must be one of 16, 32, 64"),
        (("codes=16",), "with a name of the space: num_embeddings, downsampling"),
        (("num_embeddings",), "Received: 'num_embeddings'"),
        (("downsampling=8", "downsampling=4"), "name a dimension once"),
        (("learning_rate=1",), "`learning_rate` must be from 0.0004 to 0.004"),
        (("learning_rate=fast",), "Received: 'learning_rate=fast'"),
    ],
)
def test_values_outside_the_space_are_refused(fix, said):
    with pytest.raises(InputError) as caught:
        declare(full, fix)
    assert said in str(caught.value)


def test_a_file_of_one_s_own_is_a_space(tmp_path):
    space = load_space(str(ROOT / "tests" / "support" / "tiny_space.py"))
    assert [each.name for each in declare(space).space] == ["num_embeddings", "learning_rate"]
    with pytest.raises(InputError, match="The file absent.py of `space` is not there"):
        load_space("absent.py")
    path = tmp_path / "broken.py"
    for text, said in (
        ("def space(hp:", "cannot be run .SyntaxError"),
        ("x = 1", "has no function `space"),
        ("raise SystemExit(3)", "cannot be run .SystemExit"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_space(str(path))
    for text, said in (
        ("def space(hp):\n    return 1", "must return a VQVAEConfig and a VQVAETraining"),
        (
            "def space(hp):\n    return hp.Coice('a', [1])",
            "broken.py makes nothing of .*Coice",
        ),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            declare(load_space(str(path)))


def stepped(hp):
    """A space with steps, and one value that is no choice."""
    codes = hp.Int("num_embeddings", 16, 64, step=16, default=32)
    cost = hp.Float("commitment_cost", 0.1, 0.5, step=0.2, default=0.1)
    # keras-tuner keeps a default as it is written.
    weight = hp.Float("l1_weight", 0.0, 2.0, default=1)
    model = replace(DEFAULT.model, num_embeddings=codes, commitment_cost=cost, l1_weight=weight)
    return model, replace(DEFAULT.training, batch_size=hp.Fixed("batch_size", 16))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("num_embeddings=24", "must be from 16 to 64 in steps of 16"),
        ("num_embeddings=32.5", "must be from 16 to 64 in steps of 16"),
        ("commitment_cost=0.2", "must be from 0.1 to 0.5 in steps of 0.2"),
        ("batch_size=32", "must be one of 16"),
    ],
)
def test_value_between_the_steps_is_outside(words, said):
    with pytest.raises(InputError, match=said):
        declare(stepped, (words,))


def test_value_on_a_step_is_taken():
    fix = ("num_embeddings=48", "commitment_cost=0.3", "l1_weight=0.5", "batch_size=16")
    values = declare(stepped, fix).values
    known = {"num_embeddings": 48, "commitment_cost": 0.3, "l1_weight": 0.5, "batch_size": 16}
    assert values == known
    assert type(values["num_embeddings"]) is int


def test_fixed_values_in_another_order_are_one_space():
    one, other = (
        declare(full, fix).get_config()
        for fix in (("width=64", "downsampling=8"), ("downsampling=8", "width=64"))
    )
    assert one == other


def test_dimension_asked_for_only_now_and_then_is_refused(tmp_path):
    path = tmp_path / "space.py"
    text = "from vqvae.config import DEFAULT\ndef space(hp):\n"
    text += "    if hp.Choice('num_embeddings', [16, 32]) == 32:\n"
    text += "        hp.Choice('width', [32, 64])\n    return DEFAULT.model, DEFAULT.training\n"
    path.write_text(text)
    config = SearchConfig(space=str(path))
    assert configuration(config, {"num_embeddings": 16}) == (DEFAULT.model, DEFAULT.training)
    with pytest.raises(InputError, match="asks for width only where it has .*every dimension"):
        configuration(config, {"num_embeddings": 32})


def test_one_configuration_has_one_folder(tmp_path):
    config = SearchConfig(space="full", fix=("downsampling=8",))
    values = {"num_embeddings": 64, "magnification": 1.0, "tuner/epochs": 2}
    folder = folder_of(tmp_path, config, values)
    assert folder == folder_of(tmp_path, config, {**values, "tuner/epochs": 6})
    assert folder != folder_of(tmp_path, config, {**values, "magnification": 0.8})
    assert folder.name.startswith("0064-codes-")
    model, training = configuration(config, values)
    assert (model.num_embeddings, model.magnification, training) == (64, 1.0, DEFAULT.training)


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 0},
        {"space": "sideways"},
        {"epochs": 0},
        {"prior_epochs": 0},
        {"rate_weight": 0.0},
        {"objective": "loss"},
        {"precision": "half"},
        {"seed": -1},
    ],
    ids=str,
)
def test_what_makes_no_search_is_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(InputError, match=f"Received: {name}={value!r}"):
        SearchConfig(**changes)
