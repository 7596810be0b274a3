"""A model.keras that is not the run's is refused before anything is built."""

import json
import shutil
import zipfile

import pytest
from helpers import ROOT

from brainslices.errors import InputError
from brainslices.runs.loading import load_model
from brainslices.runs.run import Run

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def run(tmp_path):
    return Run(shutil.copytree(GOLDEN / "vqvae_run", tmp_path / "run"))


def test_a_wrong_policy_is_not_taken_for_a_corrupt_model(run):
    with pytest.raises(InputError, match="`dtype` must be .* Received: dtype='flaot32'"):
        load_model(run, "vqvae", "flaot32")
    half = load_model(run, "vqvae", "mixed_bfloat16")
    assert half.file_hash == load_model(run, "vqvae").file_hash


def test_a_model_that_is_replaced_while_it_is_read_is_refused(run, monkeypatch):
    hashes = iter("ab")
    monkeypatch.setattr("brainslices.runs.loading.file_hash", lambda path: next(hashes))
    with pytest.raises(InputError, match="was replaced"):
        load_model(run, "vqvae")


def change_model(run, build=True, **changes):
    with zipfile.ZipFile(run.model_path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    stored = json.loads(entries["config.json"])
    stored["config"] |= changes
    if not build:
        del stored["build_config"]
    entries["config.json"] = json.dumps(stored).encode()
    with zipfile.ZipFile(run.model_path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", -0.5),
        ("mean", "0.2"),
        ("std", 0),
        ("std", None),
        ("crop", [0, 0, -8, 8]),
        ("crop", 7),
        ("image_shape", [10**6, 10**6]),
        ("image_shape", [24.0, 20]),
        ("seed", []),
        ("channels", "32"),
    ],
)
def test_wrong_arguments_in_the_file_are_refused_by_name(run, name, value):
    change_model(run, **{name: value})
    with pytest.raises(InputError, match=rf"model\.keras.*`?{name}"):
        load_model(run, "vqvae")


def test_another_architecture_is_refused_before_it_is_built(run):
    change_model(run, channels=[4096, 4096], embedding_dim=4096)
    with pytest.raises(InputError, match="another architecture"):
        load_model(run, "vqvae")


def test_a_model_without_weights_is_refused(run):
    change_model(run, build=False)
    with pytest.raises(InputError, match=r"model\.keras is not a readable vqvae"):
        load_model(run, "vqvae")


def test_a_model_of_another_class_is_refused(run):
    shutil.copy(GOLDEN / "pixelcnn_run" / "model.keras", run.model_path)
    with pytest.raises(InputError, match=r"model\.keras is not a readable vqvae.*PixelCNN"):
        load_model(run, "vqvae")
