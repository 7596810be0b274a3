import errno
import json
import zipfile

import numpy as np
import pytest
from helpers import assert_bit_equal, tiny_training, values
from keras import layers
from training_runs import Autoencoder, compiled_model, saved_arrays

from brainslices.errors import InputError
from brainslices.runs.run import Run
from brainslices.training.checkpoint import (
    TrainingProgress,
    has_finite_variables,
    load_checkpoint,
    save_checkpoint,
)
from brainslices.training.optimizer import compile_model

CONFIG = tiny_training()
PROGRESS = TrainingProgress(epoch=2, step=3, history={"loss": [0.5, 0.25]}, seconds=1.5)

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture(scope="module")
def model():
    return compiled_model(CONFIG)


@pytest.fixture
def run(model, tmp_path):
    """A run with two checkpoints: of epoch 1 and of `PROGRESS`."""
    run = Run(tmp_path)
    save_checkpoint(run, model, TrainingProgress(epoch=1))
    save_checkpoint(run, model, PROGRESS)
    return run


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def test_checkpoint_holds_everything(model, run):
    other = compiled_model(tiny_training(seed=5))
    other.score.update_state(0.5)
    other.optimizer.iterations.assign(7)
    assert (values(other.variables)[0] != values(model.variables)[0]).any()
    assert load_checkpoint(run, other) == PROGRESS
    for group in ("variables", "metrics_variables"):
        assert_bit_equal(*(values(getattr(each, group)) for each in (model, other)))
    assert_bit_equal(values(model.optimizer.variables), values(other.optimizer.variables))


def test_new_run_has_no_progress(model, tmp_path):
    assert load_checkpoint(tmp_path, model) == TrainingProgress()


def test_names_of_the_arrays_count_variables_and_no_layers(run):
    names = set(saved_arrays(run))
    groups = {"model": 5, "optimizer": 7, "metric": 4}
    assert names == {
        f"{group}.{number:04d}" for group, count in groups.items() for number in range(count)
    }
    layers.Dense(1)  # raises the counter in the names of the next model's layers
    again = Autoencoder()
    again.build((None, 4, 2, 1))
    compile_model(again, CONFIG, 5)
    assert load_checkpoint(run, again) == PROGRESS


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_corrupt_checkpoint_without_a_previous_one_is_rejected(model, run, share):
    run.previous_checkpoint_path.unlink()
    truncate(run.checkpoint_path, share)
    before = run.checkpoint_path.read_bytes()
    with pytest.raises(InputError, match=f"{run.checkpoint_path} is not a readable checkpoint"):
        load_checkpoint(run, model)
    assert run.checkpoint_path.read_bytes() == before


def test_two_corrupt_checkpoints_are_both_named(model, run):
    truncate(run.checkpoint_path)
    truncate(run.previous_checkpoint_path)
    with pytest.raises(InputError) as caught:
        load_checkpoint(run, model)
    for path in (run.checkpoint_path, run.previous_checkpoint_path):
        assert f"{path} is not a readable checkpoint" in str(caught.value)


def test_flipped_bit_is_detected(model, run):
    run.previous_checkpoint_path.unlink()
    content = bytearray(run.checkpoint_path.read_bytes())
    with zipfile.ZipFile(run.checkpoint_path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    # Behind the local header and the array's own: a date in a header is not checked by anyone.
    content[largest.header_offset + largest.file_size - 1] ^= 1
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        load_checkpoint(run, model)


def test_corrupt_checkpoint_is_replaced_by_the_previous_one(model, run, caplog):
    """Replaced at once: killed before its next save, the run must not lose the good one."""
    truncate(run.checkpoint_path)
    assert load_checkpoint(run, model).epoch == 1
    (message,) = caplog.messages
    assert message.startswith(f"{run.checkpoint_path} is not a readable checkpoint")
    assert "epoch 2, step 0" in message
    assert run.checkpoint_path.read_bytes() == run.previous_checkpoint_path.read_bytes()
    caplog.clear()
    assert load_checkpoint(run, model).epoch == 1
    assert not caplog.messages


def test_checkpoint_of_another_architecture_is_rejected(run):
    fault = r"does not fit.* variable model.0000 must have shape .* Received"
    with pytest.raises(InputError, match=fault):
        load_checkpoint(run, compiled_model(CONFIG, width=4))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_optimizer_must_be_finite_but_not_metrics(value):
    model = compiled_model(CONFIG)
    model.score.update_state(value)
    assert has_finite_variables(model)
    for variables in (model.trainable_variables, model.optimizer.variables):
        variable = variables[-1]
        before = np.array(variable)
        variable.assign(np.full(variable.shape, value))
        assert not has_finite_variables(model)
        variable.assign(before)


def test_checkpoint_that_cannot_be_read_is_not_overwritten(model, run, monkeypatch):
    """A lost permission is no damage: the previous checkpoint must not replace the newer one."""
    before = run.checkpoint_path.read_bytes()

    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("brainslices.training.checkpoint.read_arrays", deny)
    with pytest.raises(InputError, match=r"state\.npz cannot be read: Permission denied"):
        load_checkpoint(run, model)
    assert run.checkpoint_path.read_bytes() == before


@pytest.mark.parametrize(
    "progress",
    [
        {"epoch": -1},
        {"step": "x"},
        {"history": []},
        {"history": {"loss": [1.0]}},
        {"seconds": None},
    ],
    ids=str,
)
def test_checkpoint_with_impossible_progress_is_corrupt(model, run, progress):
    run.previous_checkpoint_path.unlink()
    with np.load(run.checkpoint_path) as file:
        arrays = dict(file)
    stored = json.loads(arrays["progress"].item()) | progress
    np.savez(run.checkpoint_path, **arrays | {"progress": np.array(json.dumps(stored))})
    (name,) = progress
    with pytest.raises(InputError, match=rf"state\.npz is not a readable checkpoint.*{name}"):
        load_checkpoint(run, model)
