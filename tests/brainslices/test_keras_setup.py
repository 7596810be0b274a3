"""The user's keras.json changes no model, and an unsupported backend in it is refused."""

import json

import numpy as np
import pytest
from helpers import ROOT, python

from brainslices.runs.json_files import read_json

TRAIN_AND_RECONSTRUCT = """
import sys
import keras
import numpy as np
from helpers import tiny_config, tiny_training
from vqvae.model import VQVAE
from vqvae.training import train

config = tiny_config(magnification=1.0, encoder_blocks=0, decoder_blocks=0)
training = tiny_training(epochs=1, schedule="constant", warmup_steps=0)
archive, run, golden, images, out = sys.argv[1:]
train(archive, run, config, training)
np.save(out, VQVAE.from_run(golden).reconstruct(np.load(images)))
"""


def keras_home(folder, **settings):
    folder.mkdir()
    (folder / "keras.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.slow
@pytest.mark.long
def test_keras_json_changes_no_model(phantom_archive, trained_vqvae, tmp_path):
    from vqvae.model import VQVAE

    golden = ROOT / "tests" / "golden" / "vqvae_run"
    model = VQVAE.from_run(golden)
    images = np.random.default_rng(0).random((2, *model.image_shape, 1), "float32")
    np.save(tmp_path / "images.npy", images)
    home = keras_home(
        tmp_path / "home", image_data_format="channels_first", floatx="float16", epsilon=0.1
    )
    files = tmp_path / "run", golden, tmp_path / "images.npy", tmp_path / "out.npy"
    ran = python(
        *("-c", TRAIN_AND_RECONSTRUCT, phantom_archive.path, *files),
        KERAS_HOME=home,
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests' / 'support'}",
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(files[-1]), model.reconstruct(images), atol=1e-5)
    metrics, expected = (read_json(run / "metrics.json") for run in (files[0], trained_vqvae))
    for name in ("ssim", "ssim_foreground", "perplexity", "loss"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("settings", [{"backend": "torch"}, {"floatx": "bfloat16"}])
def test_keras_json_that_cannot_be_used_is_refused(settings, tmp_path):
    home = keras_home(tmp_path / "home", **settings)
    command = ROOT / "scripts" / "encode_codes.py"
    ran = python(command, "--run", tmp_path, KERAS_HOME=home, KERAS_BACKEND="")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert "tensorflow or jax" in ran.stderr
    assert "Traceback" not in ran.stderr
