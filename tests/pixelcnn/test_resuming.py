import dataclasses

import numpy as np
import pytest
from helpers import ROOT, python
from prior_training import (
    CODES,
    CONFIG,
    VARIABLES,
    assert_same_training,
    read_history,
    sample_codes,
    train_or_resume,
)
from training_runs import contents, interrupt_after, saved_progress

import pixelcnn.training
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.mark.slow
def test_interrupted_training_equals_an_uninterrupted_one(
    trained_run, grids, tmp_path, monkeypatch
):
    """Dropout, averages, Adam, schedule, order of grids and variants, hidden conditions resume."""
    interrupt_after(monkeypatch, [(1, 3)])
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="Rerun the same command to resume"):
        train_or_resume(run, grids)
    progress = saved_progress(run)
    assert (progress["epoch"], progress["step"]) == (1, 3)
    assert not run.metrics_path.exists()
    train_or_resume(run, grids)
    assert_same_training(trained_run[0], run.path)


def test_variable_names_do_not_depend_on_earlier_models(run, grids, monkeypatch):
    """TensorFlow orders some sums by name: other names would change the last bits."""
    paths, build = [], pixelcnn.training.build_model

    def build_and_record(*arguments):
        model = build(*arguments)
        paths.append([variable.path for variable in model.variables])
        raise InterruptedError

    monkeypatch.setattr(pixelcnn.training, "build_model", build_and_record)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            train_or_resume(run, grids)
        for _ in range(9):
            build(grids, CONFIG, 0, VARIABLES)
    assert paths[0] == paths[1]


@pytest.mark.long
@pytest.mark.slow
def test_more_epochs_resume_a_finished_training(run, trained_run, grids):
    metrics = train_or_resume(run, grids, epochs=4)
    assert metrics["epochs"] == 4
    earlier = (trained_run[0] / "history.csv").read_text()
    assert run.history_path.read_text().startswith(earlier)
    assert len(read_history(run.path)["epoch"]) == 4
    assert read_json(run.config_path)["training"]["epochs"] == 4


def test_another_configuration_is_rejected_and_nothing_changes(run, grids):
    before = contents(run.path)
    with pytest.raises(InputError, match=r"layers=2 \(received: 3\)"):
        train_or_resume(run, grids, dataclasses.replace(CONFIG, layers=3))
    with pytest.raises(InputError, match=r"variants=2 \(received: 1\)"):
        train_or_resume(run, grids, variants=1)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("field", "flag", "before", "now"),
    [("vqvae_hash", "--vqvae", "aaaaaaaaaaaa", "bbbbbbbbbbbb")]
    + [("archive_hash", "--data", "cccccccccccc", "bbbbbbbbbbbb")],
)
def test_codes_of_another_vqvae_or_archive_are_rejected(run, grids, field, flag, before, now):
    files = contents(run.path)
    with pytest.raises(InputError) as caught:
        train_or_resume(run, dataclasses.replace(grids, **{field: "b" * 64}))
    assert str(run.path) in str(caught.value)
    assert all(part in str(caught.value) for part in (flag, before, now))
    assert contents(run.path) == files


def test_locked_run_is_rejected(run, grids):
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        train_or_resume(run, grids)


@pytest.mark.parametrize("missing", ["train", "validate"])
def test_codes_without_a_training_or_validation_split_are_rejected(grids, tmp_path, missing):
    rest = {name: split for name, split in grids.splits.items() if name != missing}
    with pytest.raises(InputError, match=f"'{missing}'"):
        train_or_resume(Run(tmp_path / "run"), dataclasses.replace(grids, splits=rest))
    assert not any(tmp_path.iterdir())


JAX = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
sys.modules["tensorflow_probability"] = None
sys.path.insert(0, {support!r})
import pathlib
import keras, numpy as np, pytest
from brainslices.data.code_grids import CodeGrids
from brainslices.runs.run import Run
from prior_training import assert_same_training, sample_codes, train_or_resume
from training_runs import interrupt_after
assert keras.backend.backend() == "jax"
here = pathlib.Path({here!r})
grids = CodeGrids.load(here / "codes.npz")
patch = pytest.MonkeyPatch()
train_or_resume(Run(here / "uninterrupted"), grids)
interrupt_after(patch, [(1, 3)])
with pytest.raises(KeyboardInterrupt):
    train_or_resume(Run(here / "interrupted"), grids)
train_or_resume(Run(here / "interrupted"), grids)
assert_same_training(here / "uninterrupted", here / "interrupted")
of_jax = sample_codes(here / "uninterrupted", "jax")
of_tensorflow = sample_codes({run!r}, "tensorflow")
np.savez(here / "sampled.npz", **of_jax, **of_tensorflow)
"""


@pytest.mark.slow
def test_jax_trains_resumes_and_samples_as_tensorflow(trained_run, grids, tmp_path):
    pytest.importorskip("jax")
    grids.save(tmp_path / "codes.npz")
    code = JAX.format(
        support=str(ROOT / "tests" / "support"), here=str(tmp_path), run=str(trained_run[0])
    )
    ran = python("-c", code, timeout=500, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    nats = read_history(tmp_path / "uninterrupted")["val_nats_per_code"]
    assert nats[2] < nats[0]
    expected = sample_codes(trained_run[0], "tensorflow")
    with np.load(tmp_path / "sampled.npz") as sampled:
        np.testing.assert_array_equal(sampled["tensorflow_codes"], expected["tensorflow_codes"])
        np.testing.assert_allclose(
            sampled["tensorflow_log_prob"], expected["tensorflow_log_prob"], atol=1e-4
        )
        assert sampled["jax_codes"].min() >= 0
        assert sampled["jax_codes"].max() < CODES
        assert np.isfinite(sampled["jax_log_prob"]).all()
