import dataclasses
import json

import pytest
from helpers import tiny_config, tiny_training

from brainslices.config import from_dict
from brainslices.errors import InputError
from brainslices.runs.selection import Selection
from vqvae.config import PRESETS, VQVAEConfig, VQVAETraining


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (8,)}, "`channels` must be two or three widths from 1 to 4096"),
        ({"channels": (8, 0)}, "Received: channels=(8, 0)."),
        ({"kernel_size": 2}, "`kernel_size` must be 3, 4 or 5. Received: kernel_size=2."),
        ({"encoder_blocks": -1}, "`encoder_blocks` must be at least 0."),
        ({"num_embeddings": 1}, "`num_embeddings` must be from 2 to 16384."),
        (
            {"embedding_dim": 0},
            "`embedding_dim` must be from 1 to 4096. Received: embedding_dim=0.",
        ),
        ({"codebook": "gumbel"}, "`codebook` must be 'ema' or 'gradient'."),
        ({"decay": 1.0}, "`decay` must be in [0, 1). Received: decay=1.0."),
        ({"restart_threshold": -0.5}, "`restart_threshold` must be at least 0."),
        ({"commitment_cost": 0.0}, "`commitment_cost` must be a positive number."),
        ({"commitment_cost": float("nan")}, "Received: commitment_cost=nan."),
        ({"l1_weight": float("inf")}, "`l1_weight` must be a finite number, at least 0."),
        ({"codebook": "gradient", "restart_threshold": 0.5}, "0 with codebook='gradient'"),
        (
            {"l1_weight": 0.0, "mse_weight": 0.0, "ssim_weight": 0.0},
            "`mse_weight` must be positive, as the other two weights are 0.",
        ),
    ],
)
def test_wrong_model_values_are_refused(change, message):
    with pytest.raises(InputError) as caught:
        tiny_config(**change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1. Received: epochs=0."),
        ({"batch_size": -1}, "`batch_size` must be at least 1. Received: batch_size=-1."),
        ({"learning_rate": 0.0}, "`learning_rate` must be a positive number."),
        ({"learning_rate": float("nan")}, "Received: learning_rate=nan."),
        ({"beta_2": 1.0}, "`beta_2` must be between 0 and 1. Received: beta_2=1.0."),
        ({"learning_rate": float("inf")}, "Received: learning_rate=inf."),
        ({"seed": -1}, "`seed` must be from 0 to 2**32 - 1. Received: seed=-1."),
        ({"gradient_clip": -1.0}, "`gradient_clip` must be at least 0."),
        ({"schedule": "linear"}, "`schedule` must be 'constant' or 'cosine'."),
        ({"schedule": "constant", "warmup_steps": 5}, "0 with schedule='constant'"),
        ({"precision": "float16"}, "`precision` must be one of auto, float32, mixed_bfloat16"),
    ],
)
def test_wrong_training_values_are_refused(change, message):
    with pytest.raises(InputError) as caught:
        tiny_training(**change)
    assert message in str(caught.value)


def test_downsampling_is_a_power_of_two_for_each_level():
    assert tiny_config(channels=(8, 8)).downsampling == 4
    assert tiny_config(channels=(8, 8, 8)).downsampling == 8


def test_seed_preset_is_the_seed_documents_network():
    model, training = PRESETS["seed"].model, PRESETS["seed"].training
    assert (model.channels, model.embedding_dim, model.kernel_size) == ((32, 64), 16, 3)
    assert (model.num_embeddings, model.codebook) == (128, "gradient")
    assert (model.l1_weight, model.mse_weight, model.ssim_weight) == (0, 1, 0)
    assert training.schedule == "constant"


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_survives_json(preset, tmp_path):
    path = tmp_path / "config.json"
    model, training = PRESETS[preset].model, PRESETS[preset].training
    parts = {"model": dataclasses.asdict(model), "training": dataclasses.asdict(training)}
    path.write_text(json.dumps(parts))
    assert Selection(config=path).load(PRESETS) == (model, training)
    assert Selection(preset=preset).load(PRESETS) == (model, training)


def written(tmp_path, **changes):
    """A file with the default configuration but for `changes` to its model; None removes a key."""
    preset = PRESETS["default"]
    model = {**dataclasses.asdict(preset.model), **changes}
    model = {key: value for key, value in model.items() if value is not None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": model, "training": dataclasses.asdict(preset.training)}))
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        Selection(config=path).load(PRESETS)
    return str(caught.value)


def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path):
    path = written(tmp_path, num_embedings=64)
    expected = f"Unknown key `num_embedings` in {path}. Did you mean `num_embeddings`?"
    assert refusal(path) == expected


def test_unknown_key_like_no_other_is_refused_with_all_known_ones(tmp_path):
    message = refusal(written(tmp_path, zzz=1))
    assert "Unknown key `zzz`" in message
    assert "commitment_cost" in message


def test_missing_keys_are_named(tmp_path):
    path = written(tmp_path, decay=None, kernel_size=None)
    assert (
        refusal(path) == f"Missing keys in {path}: kernel_size, decay. A run's config.json has all."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"num_embeddings": 32.5},
        {"num_embeddings": True},
        {"channels": 8},
        {"channels": ["8", "16"]},
        {"channels": [8.5, 16]},
        {"decay": "high"},
        {"decay": [0.9]},
        {"kmeans_init": "no"},
        {"l2_normalized": 0.5},
        {"commitment_cost": True},
        {"codebook": 1},
    ],
    ids=str,
)
def test_values_of_the_wrong_type_are_refused(tmp_path, change):
    path = written(tmp_path, **change)
    ((name, value),) = change.items()
    assert refusal(path) == f"`{name}` in {path} has the wrong type. Received: {name}={value!r}."


def test_whole_number_is_a_number(tmp_path):
    model, _ = Selection(config=written(tmp_path, commitment_cost=1)).load(PRESETS)
    assert model.commitment_cost == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object. Received: list."),
        ('{"model": {}}', "must hold an object `training`."),
        ('{"model": [], "training": {}}', "must hold an object `model`."),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert message in refusal(path)
    assert str(path) in refusal(path)


def test_absent_file_is_refused(tmp_path):
    path = tmp_path / "absent.json"
    assert refusal(path) == f"There is no file {path}. Give the path of a JSON file that exists."


def test_defaults_fill_keys_that_have_them():
    values = dataclasses.asdict(tiny_training())
    del values["precision"], values["seed"]
    config = from_dict(VQVAETraining, values, "here")
    assert (config.precision, config.seed) == ("auto", 0)


def test_every_field_is_documented_for_the_flags():
    """tyro shows the strings under the fields; a field without one would have a bare flag."""
    import inspect

    for kind in (VQVAEConfig, VQVAETraining):
        # Fields are inherited too.
        source = "".join(map(inspect.getsource, kind.__mro__[:-1]))
        for field in dataclasses.fields(kind):
            _, after = source.split(f"\n    {field.name}: ", 1)
            assert after.split("\n")[1].strip().startswith('"""'), field.name
