import dataclasses
import json

import pytest
from helpers import tiny_config, tiny_training

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import Objective
from brainslices.training.stage import (
    Stage,
    _resumed_precision,
    _write_run_metadata,
    check_batch_divides,
    check_resumable,
)

MODEL, TRAINING = tiny_config(), tiny_training(precision="auto")
PROVENANCE = {"archive_hash": "a" * 64, "vqvae_hash": "b" * 64}
STAGE = Stage(
    kind="vqvae",
    model=MODEL,
    objective=Objective("val_loss", "min"),
    provenance=PROVENANCE,
    metadata={},
    sample_counts=(1, 1),
    prepare=NotImplemented,
    measure=NotImplemented,
)


@pytest.fixture
def run(tmp_path):
    """A run that has started, without the content of its checkpoint."""
    run = Run(tmp_path / "run")
    write_json(run.config_path, STAGE.run_config(TRAINING))
    run.checkpoint_path.touch()
    return run


def rejected(run, model=MODEL, provenance=PROVENANCE, kind="vqvae", **changes):
    """Message of the error that a training in the run raises."""
    with pytest.raises(InputError) as caught:
        training = dataclasses.replace(TRAINING, **changes)
        check_resumable(run, kind, model, training, provenance)
    return str(caught.value)


def test_run_config_holds_everything_that_a_run_is_made_from():
    assert STAGE.run_config(TRAINING) == {
        "format_version": FORMAT_VERSION,
        "kind": "vqvae",
        "model": dataclasses.asdict(MODEL),
        "training": dataclasses.asdict(TRAINING),
        **PROVENANCE,
    }


def test_same_training_with_more_epochs_resumes(run):
    check_resumable(run.path, "vqvae", MODEL, TRAINING, PROVENANCE)
    longer = dataclasses.replace(TRAINING, epochs=TRAINING.epochs + 1)
    check_resumable(run, "vqvae", MODEL, longer)  # hashes that are not known yet


@pytest.mark.parametrize(
    ("model", "training", "change"),
    [
        ({"num_embeddings": 16}, {}, "num_embeddings=32 (received: 16)"),
        ({"channels": (8, 8)}, {}, "channels=(8, 16) (received: (8, 8))"),
        ({}, {"epochs": 1}, "epochs=2 (received: 1)"),
        ({}, {"seed": 3, "mirror": True}, "seed=0 (received: 3)"),
        ({}, {"seed": 3, "mirror": True}, "mirror=False (received: True)"),
    ],
)
def test_other_values_are_rejected_by_field(run, model, training, change):
    message = rejected(run, dataclasses.replace(MODEL, **model), **training)
    assert str(run.path) in message
    assert change in message


@pytest.mark.parametrize(("key", "flag"), [("archive_hash", "--data"), ("vqvae_hash", "--vqvae")])
def test_other_origin_is_rejected(run, key, flag):
    message = rejected(run, provenance={**PROVENANCE, key: "c" * 64})
    assert all(part in message for part in (flag, PROVENANCE[key][:12], f"{key}=cccccccccccc"))


def test_run_of_the_other_stage_is_rejected(run):
    assert "'vqvae'" in rejected(run, kind="pixelcnn")


def test_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "chapter.txt").write_text("text")
    message = rejected(Run(tmp_path))
    assert str(tmp_path) in message
    assert "chapter.txt" in message


def test_batch_that_devices_cannot_share_is_rejected():
    check_batch_divides(8, 4)
    with pytest.raises(InputError, match=r"multiple of 3.*batch_size=8"):
        check_batch_divides(8, 3)


def test_environment_records_earlier_values(tmp_path):
    run, first = Run(tmp_path), {"devices": ["gpu:0"], "seed": 0}
    for _ in range(2):
        _write_run_metadata(run, {}, first)
        assert read_json(run.environment_path) == {**first, "earlier": []}
    second = {"devices": ["cpu:0"], "seed": 0}
    for _ in range(2):
        _write_run_metadata(run, {}, second)
        expected = {**second, "earlier": [{"devices": ["gpu:0"]}]}
        assert read_json(run.environment_path) == expected


def test_corrupt_environment_is_overwritten(tmp_path, caplog):
    run, metadata = Run(tmp_path), {"devices": ["cpu:0"]}
    run.environment_path.write_text("{")
    _write_run_metadata(run, {}, metadata)
    assert read_json(run.environment_path) == {**metadata, "earlier": []}
    assert "environment.json is not a readable JSON file" in caplog.text


def test_resumed_run_keeps_its_precision(run):
    saved = {"precision": "mixed_bfloat16", "precision_reason": "another machine"}
    run.environment_path.write_text(json.dumps(saved))
    assert _resumed_precision(run, TRAINING, 8) == ("mixed_bfloat16", "another machine")
    explicit = dataclasses.replace(TRAINING, precision="float32")
    assert _resumed_precision(run, explicit, 8)[0] == "float32"
    run.checkpoint_path.unlink()  # never started: the rule decides
    assert _resumed_precision(run, TRAINING, 8)[1] != "another machine"
