import dataclasses
import json

import pytest
from helpers import tiny_config, tiny_training

from brainslices.config import from_dict
from brainslices.errors import InputError
from brainslices.runs.selection import Selection
from vqvae.config import PRESETS, VQVAEConfig, VQVAETraining


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"magnification": 5.0}, "magnification"),
        ({"channels": (8,)}, "channels"),
        ({"channels": (8, 0)}, "channels"),
        ({"kernel_size": 2}, "kernel_size"),
        ({"encoder_blocks": -1}, "encoder_blocks"),
        ({"num_embeddings": 1}, "num_embeddings"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"codebook": "gumbel"}, "codebook"),
        ({"decay": 1.0}, "decay"),
        ({"restart_threshold": -0.5}, "restart_threshold"),
        ({"commitment_cost": 0.0}, "commitment_cost"),
        ({"commitment_cost": float("nan")}, "commitment_cost"),
        ({"foreground_share": 1.5}, "foreground_share"),
        ({"l1_weight": float("inf")}, "l1_weight"),
        ({"restart_threshold": 0.5, "codebook": "gradient"}, "restart_threshold"),
        ({"mse_weight": 0.0, "l1_weight": 0.0, "ssim_weight": 0.0}, "mse_weight"),
    ],
)
def test_wrong_model_values_are_refused(change, refused):
    with pytest.raises(InputError) as caught:
        tiny_config(**change)
    assert f"`{refused}`" in str(caught.value)
    assert f"Received: {refused}={change[refused]!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"beta_2": 1.0}, "beta_2"),
        ({"seed": -1}, "seed"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"schedule": "linear"}, "schedule"),
        ({"warmup_steps": 5, "schedule": "constant"}, "warmup_steps"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_wrong_training_values_are_refused(change, refused):
    with pytest.raises(InputError) as caught:
        tiny_training(**change)
    assert f"`{refused}`" in str(caught.value)
    assert f"Received: {refused}={change[refused]!r}" in str(caught.value)


def test_each_strided_convolution_halves_the_sides():
    assert tiny_config(channels=(8, 8)).downsampling == 4
    assert tiny_config(channels=(8, 8, 8)).downsampling == 8


def test_seed_preset_is_the_baseline_network():
    model, training = PRESETS["seed"].model, PRESETS["seed"].training
    assert (model.channels, model.embedding_dim, model.kernel_size) == ((32, 64), 16, 3)
    assert (model.num_embeddings, model.codebook) == (128, "gradient")
    assert (model.l1_weight, model.mse_weight, model.ssim_weight) == (0, 1, 0)
    assert (training.schedule, training.optimizer) == ("constant", "adam")
    assert model.foreground_share == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_round_trips_through_json(preset, tmp_path):
    path = tmp_path / "config.json"
    model, training = PRESETS[preset].model, PRESETS[preset].training
    parts = {"model": dataclasses.asdict(model), "training": dataclasses.asdict(training)}
    path.write_text(json.dumps(parts))
    assert Selection(config=path).load(PRESETS) == (model, training)
    assert Selection(preset=preset).load(PRESETS) == (model, training)


def write_config(tmp_path, **changes):
    """A file with the default configuration and `changes` to its model; None removes a key."""
    preset = PRESETS["default"]
    model = {**dataclasses.asdict(preset.model), **changes}
    model = {key: value for key, value in model.items() if value is not None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": model, "training": dataclasses.asdict(preset.training)}))
    return path


def error_message(path):
    with pytest.raises(InputError) as caught:
        Selection(config=path).load(PRESETS)
    return str(caught.value)


def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path):
    message = error_message(write_config(tmp_path, num_embedings=64))
    assert "`num_embedings`" in message
    assert "`num_embeddings`" in message


def test_unknown_key_that_resembles_none_is_refused_with_all_known_ones(tmp_path):
    message = error_message(write_config(tmp_path, zzz=1))
    assert "`zzz`" in message
    assert "commitment_cost" in message


def test_missing_keys_are_named(tmp_path):
    message = error_message(write_config(tmp_path, decay=None, kernel_size=None))
    assert "kernel_size, decay" in message


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
    message = error_message(write_config(tmp_path, **change))
    ((name, value),) = change.items()
    assert f"`{name}`" in message
    assert f"{name}={value!r}" in message


def test_integer_is_accepted_for_a_float(tmp_path):
    model, _ = Selection(config=write_config(tmp_path, commitment_cost=1)).load(PRESETS)
    assert model.commitment_cost == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "an object of fields. Received: []"),
        ('{"model": {}}', "it lacks training"),
        ('{"model": [], "training": {}}', "`model`"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert message in error_message(path)
    assert str(path) in error_message(path)


def test_absent_file_is_refused(tmp_path):
    path = tmp_path / "absent.json"
    assert str(path) in error_message(path)


def test_defaults_fill_keys_that_have_them():
    values = dataclasses.asdict(tiny_training())
    del values["precision"], values["seed"]
    config = from_dict(VQVAETraining, values, "here")
    assert (config.precision, config.seed) == ("auto", 0)


def test_every_field_is_documented_for_the_flags():
    """tyro shows the strings below the fields as the help of the flags."""
    import inspect

    for config_type in (VQVAEConfig, VQVAETraining):
        # Fields are inherited too.
        source = "".join(map(inspect.getsource, config_type.__mro__[:-1]))
        for field in dataclasses.fields(config_type):
            _, after = source.split(f"\n    {field.name}: ", 1)
            assert after.split("\n")[1].strip().startswith('"""'), field.name
