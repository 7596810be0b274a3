"""The choice of the dtype policy; models of any policy load in any other."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import (
    pictures,
    tiny_config,
    tiny_prior_config,
    tiny_prior_training,
    tiny_training,
    values,
)

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.loading import load_model
from brainslices.runs.run import Run
from brainslices.training import precision
from brainslices.training.precision import resolve_precision

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
WIDTH = 8

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.mark.parametrize("policy", POLICIES)
def test_requested_precision_is_used(policy):
    assert resolve_precision(policy, WIDTH) == (policy, "as requested")


def test_precision_that_the_device_lacks_is_rejected(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("No kernel for half on this device\nand more lines")

    monkeypatch.setattr(keras.ops, "conv", fail)
    with pytest.raises(InputError, match=r"No kernel for half on this device\)") as caught:
        resolve_precision("mixed_float16", WIDTH)
    assert "precision='mixed_float16'" in str(caught.value)
    assert "more lines" not in str(caught.value)
    assert resolve_precision("float32", WIDTH) == ("float32", "as requested")


@pytest.mark.parametrize(
    ("capability", "policy"),
    [
        ((9, 0), "mixed_bfloat16"),
        ((8, 0), "mixed_bfloat16"),
        ((7, 5), "mixed_float16"),
        ((6, 1), "float32"),
        ((0, 0), "float32"),
    ],
)
def test_auto_on_a_gpu_follows_its_compute_capability(monkeypatch, capability, policy):
    monkeypatch.setattr(precision, "_gpu_capability", lambda: capability)
    assert resolve_precision("auto", WIDTH)[0] == policy


@pytest.mark.parametrize(
    ("flags", "width", "policy"),
    [
        ("avx512f avx512_bf16", 64, "mixed_bfloat16"),
        ("amx_bf16 amx_tile", 128, "mixed_bfloat16"),
        ("amx_bf16 amx_tile", 63, "float32"),
        ("avx512f avx2", 128, "float32"),
    ],
)
def test_auto_on_a_cpu_follows_its_instructions_and_the_width(monkeypatch, flags, width, policy):
    monkeypatch.setattr(precision, "list_gpus", list)
    monkeypatch.setattr(precision.Path, "read_text", lambda self: f"flags : {flags}\n")
    assert resolve_precision("auto", width)[0] == policy


@pytest.fixture(
    scope="module", params=["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long)]
)
def trained(request, phantom_archive, tmp_path_factory):
    """Runs of both stages in a mixed policy: the policy, and the runs."""
    from pixelcnn.training import train as train_pixelcnn
    from vqvae.encode import load_or_encode
    from vqvae.training import train as train_vqvae

    folder = tmp_path_factory.mktemp(request.param)
    vqvae, prior = folder / "vqvae", folder / "pixelcnn"
    short = {"epochs": 1, "precision": request.param}
    config = tiny_config(encoder_blocks=0, decoder_blocks=0)
    train_vqvae(phantom_archive.path, vqvae, config, tiny_training(**short))
    training = tiny_prior_training(**short)
    grids = load_or_encode(vqvae, variants=training.variants)
    train_pixelcnn(grids, prior, tiny_prior_config(layers=1, attention_layers=1), training)
    return request.param, Run(vqvae), Run(prior)


@pytest.mark.slow
def test_runs_record_their_policy(trained):
    policy, vqvae, prior = trained
    for run, score in ((vqvae, "loss"), (prior, "nats_per_code")):
        assert read_json(run.environment_path)["precision"] == policy
        assert 0 < read_json(run.metrics_path)[score] < 10


@pytest.mark.slow
@pytest.mark.parametrize("other", POLICIES)
def test_models_of_one_policy_load_in_any_other(trained, phantom_archive, other):
    """The same float32 weights; outputs agree to the eight bits of bfloat16."""
    _, vqvae, prior = trained
    images = pictures(4, phantom_archive.image_shape)
    for kind, run in {"vqvae": vqvae, "pixelcnn": prior}.items():
        own, loaded = (load_model(run, kind, dtype) for dtype in (None, other))
        assert loaded.dtype_policy.name == other
        for one, two in zip(values(own.weights), values(loaded.weights), strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        if kind == "vqvae":
            outputs = [np.asarray(model.encode(images), "float32") for model in (own, loaded)]
        else:
            grids = np.random.default_rng(0).integers(0, 32, (4, *own.grid_shape))
            position = np.linspace(0, 1, 4, dtype="float32")
            outputs = [np.asarray(model.log_prob(grids, position)) for model in (own, loaded)]
        assert outputs[0].dtype == "float32"
        scale = np.abs(outputs[0]).max()
        np.testing.assert_allclose(outputs[0], outputs[1], atol=0.03 * scale)


@pytest.mark.slow
def test_another_precision_is_another_run(trained, phantom_archive):
    from vqvae.training import train

    policy, vqvae, _ = trained
    training = dataclasses.replace(tiny_training(epochs=2), precision="float32")
    with pytest.raises(InputError, match=f"precision='{policy}' .received: 'float32'"):
        train(phantom_archive.path, vqvae.path, tiny_config(), training)
