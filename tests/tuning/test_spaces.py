import itertools
from dataclasses import replace

import keras_tuner
import pytest
from helpers import ROOT

from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.spaces import SPACES, codebook, declare, full, load_space
from tuning.trial import trial_config, trial_folder
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
    """All combinations of choices and of both ends of ranges, every seventh one."""
    dimensions = declare(space).space
    choices = [
        [dimension.min_value, dimension.max_value]
        if hasattr(dimension, "min_value")
        else dimension.values
        for dimension in dimensions
    ]
    combinations = list(itertools.product(*choices))[::7]
    configs = set()
    for values in combinations:
        hp = keras_tuner.HyperParameters()
        for dimension, value in zip(dimensions, values, strict=True):
            hp.Fixed(dimension.name, value)
        model, training = space(hp)
        assert model.num_embeddings == hp.values["num_embeddings"]
        assert model.downsampling == hp.values["downsampling"]
        configs.add((model, training))
    assert len(configs) == len(combinations)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")
def test_fixed_dimensions_have_one_value(tmp_path):
    hp = declare(full, ("num_embeddings=64", "learning_rate=0.002", "magnification=1"))
    names = [dimension.name for dimension in hp.space]
    assert names[:3] == ["learning_rate", "magnification", "num_embeddings"]
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
    ("argument", "fix"),
    [
        ("num_embeddings", ("num_embeddings=100",)),
        ("fix", ("codes=16",)),
        ("fix", ("num_embeddings",)),
        ("fix", ("downsampling=4", "downsampling=8")),
        ("learning_rate", ("learning_rate=1",)),
        ("learning_rate", ("learning_rate=fast",)),
    ],
    ids=str,
)
def test_values_outside_the_space_are_refused(argument, fix):
    with pytest.raises(InputError, match=f"`{argument}`.*Received: '{fix[-1]}'"):
        declare(full, fix)


def test_space_from_a_file():
    space = load_space(str(ROOT / "tests" / "support" / "tiny_space.py"))
    names = [dimension.name for dimension in declare(space).space]
    assert names == ["num_embeddings", "learning_rate"]
    with pytest.raises(InputError, match="`space`.*Received: space='absent.py'"):
        load_space("absent.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def space(hp:", "SyntaxError"),
        ("x = 1", "`space"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def space(hp):\n    return 1", "Received: 1"),
        ("def space(hp):\n    return hp.Coice('a', [1])", "AttributeError: .*Coice"),
    ],
)
def test_broken_space_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError, match=f"broken.py.*{message}"):
        declare(load_space(str(path)))


def stepped(hp):
    """A space with steps and a fixed value."""
    codes = hp.Int("num_embeddings", 16, 64, step=16, default=32)
    cost = hp.Float("commitment_cost", 0.1, 0.5, step=0.2, default=0.1)
    # keras-tuner does not convert the default to a float.
    weight = hp.Float("l1_weight", 0.0, 2.0, default=1)
    model = replace(DEFAULT.model, num_embeddings=codes, commitment_cost=cost, l1_weight=weight)
    return model, replace(DEFAULT.training, batch_size=hp.Fixed("batch_size", 16))


@pytest.mark.parametrize(
    "item", ["num_embeddings=24", "num_embeddings=32.5", "commitment_cost=0.2", "batch_size=32"]
)
def test_value_between_the_steps_is_refused(item):
    with pytest.raises(InputError, match=f"`{item.partition('=')[0]}`.*Received: '{item}'"):
        declare(stepped, (item,))


def test_value_on_a_step_is_accepted():
    fix = ("num_embeddings=48", "commitment_cost=0.3", "l1_weight=0.5", "batch_size=16")
    values = declare(stepped, fix).values
    known = {"num_embeddings": 48, "commitment_cost": 0.3, "l1_weight": 0.5, "batch_size": 16}
    assert values == known
    assert type(values["num_embeddings"]) is int


def test_order_of_fixed_values_does_not_matter():
    one, other = (
        declare(full, fix).get_config()
        for fix in (("width=64", "downsampling=8"), ("downsampling=8", "width=64"))
    )
    assert one == other


def test_conditional_dimension_is_refused(tmp_path):
    path = tmp_path / "space.py"
    text = "from vqvae.config import DEFAULT\ndef space(hp):\n"
    text += "    if hp.Choice('num_embeddings', [16, 32]) == 32:\n"
    text += "        hp.Choice('width', [32, 64])\n    return DEFAULT.model, DEFAULT.training\n"
    path.write_text(text)
    config = SearchConfig(space=str(path))
    assert trial_config(config, {"num_embeddings": 16}) == (DEFAULT.model, DEFAULT.training)
    with pytest.raises(InputError, match="every dimension.*Received: width"):
        trial_config(config, {"num_embeddings": 32})


def test_trials_of_one_configuration_share_a_folder(tmp_path):
    config = SearchConfig(space="full", fix=("downsampling=8",))
    values = {"num_embeddings": 64, "magnification": 1.0, "tuner/epochs": 2}
    folder = trial_folder(tmp_path, config, values)
    assert folder == trial_folder(tmp_path, config, {**values, "tuner/epochs": 6})
    assert folder != trial_folder(tmp_path, config, {**values, "magnification": 0.8})
    assert folder.name.startswith("0064-codes-")
    model, training = trial_config(config, values)
    assert (model.num_embeddings, model.magnification, training) == (64, 1.0, DEFAULT.training)


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 0},
        {"space": "sideways"},
        {"epochs": 0},
        {"prior_epochs": -1},
        {"final_prior_epochs": 0},
        {"rate_weight": 0.0},
        {"objective": "loss"},
        {"precision": "half"},
        {"seed": -1},
    ],
    ids=str,
)
def test_invalid_search_is_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(InputError, match=f"Received: {name}={value!r}"):
        SearchConfig(**changes)
