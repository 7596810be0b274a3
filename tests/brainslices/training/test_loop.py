import csv
import dataclasses
import json
import signal

import keras
import numpy as np
import pytest
from helpers import assert_bit_equal, tiny_training, values
from keras import layers, ops

from brainslices.data.batches import SliceBatches
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run
from brainslices.training.callbacks import CheckpointCallback
from brainslices.training.checkpoint import load_checkpoint, save_checkpoint
from brainslices.training.loop import _write_run_metadata, fit
from brainslices.training.optimizer import compile_model, learning_rate

GOAL = ("val_ssim", "max")
STEPS = 5


pytestmark = pytest.mark.usefixtures("fresh_keras")


class Autoencoder(keras.Model):
    """A model with all kinds of state: weights, dropout's generator, metrics."""

    def __init__(self, width=2, **kwargs):
        super().__init__(**kwargs)
        self.steps = [
            layers.Conv2D(width, 4, strides=4, activation="relu"),
            layers.Dropout(0.3, seed=1),
            layers.Conv2DTranspose(1, 4, strides=4),
        ]
        self.score = keras.metrics.Mean(name="ssim")

    def build(self, input_shape):
        for step in self.steps:
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)

    def call(self, inputs, training=False):
        for step in self.steps:
            inputs = step(inputs, training=training) if "dropout" in step.name else step(inputs)
        return inputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = ops.mean(ops.square(x - y_pred))
        self.score.update_state(1 - loss)
        return loss


def made(config, width=2):
    keras.utils.set_random_seed(config.seed)
    model = Autoencoder(width)
    model.build((None, 64, 64, 1))
    compile_model(model, config, STEPS)
    return model


ON_STEP = CheckpointCallback.on_train_batch_end


def interrupted(place, number):
    """The keeper's callback, with a signal just before the end of one step."""

    def on_train_batch_end(self, batch, logs=None):
        if (self.state.epoch, self.state.step) == place:
            signal.raise_signal(number)
        ON_STEP(self, batch, logs)

    return on_train_batch_end


@pytest.fixture
def train(phantom_archive, tmp_path, monkeypatch):
    """Trains in a run folder until its end, or until a signal that comes within a step."""

    def go(name="run", interrupt=(None, None), number=signal.SIGINT, **changes):
        config = tiny_training(**{"epochs": 3, **changes})
        model, run = made(config), Run(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        data = SliceBatches(
            phantom_archive, phantom_archive.indices("train"), 8, config.seed, mirror=True
        )
        assert len(data) == STEPS
        monkeypatch.setattr(
            CheckpointCallback, "on_train_batch_end", interrupted(interrupt, number)
        )
        validation = SliceBatches(phantom_archive, phantom_archive.indices("validate"), 8)
        return model, fit(model, data, validation, run, config, *GOAL), run

    return go


def saved(run):
    with np.load(run.checkpoint_path) as file:
        return {key: file[key] for key in file.files}


def test_whole_training_leaves_its_files(train):
    model, state, run = train()
    assert (state.epoch, state.step) == (3, 0)
    with run.history_path.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["epoch", "loss", "ssim", "val_loss", "val_ssim", "learning_rate"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    for number, name in enumerate(rows[0][1:], start=1):
        assert [float(row[number]) for row in rows[1:]] == state.history[name]
    assert run.model_path.is_file()
    assert state.history["val_ssim"][2] > state.history["val_ssim"][0]


def test_best_epoch_is_kept_not_the_last(train, monkeypatch):
    scores = iter([0.2, 0.9, 0.5])
    evaluate = keras.Model.evaluate

    def scored(self, *args, **kwargs):
        return {**evaluate(self, *args, **kwargs), "ssim": next(scores)}

    monkeypatch.setattr(keras.Model, "evaluate", scored)
    kept = []
    save = keras.Model.save
    monkeypatch.setattr(
        keras.Model,
        "save",
        lambda self, path: (kept.append(values(self.weights)), save(self, path)),
    )
    model, state, run = train()
    assert state.history["val_ssim"] == [0.2, 0.9, 0.5]
    assert len(kept) == 2
    loaded = keras.saving.load_model(run.model_path, custom_objects={"Autoencoder": Autoencoder})
    assert_bit_equal(values(loaded.trainable_variables), kept[1][: len(loaded.trainable_variables)])
    assert (kept[1][0] != model.get_weights()[0]).any()


@pytest.mark.parametrize(
    "interrupts", [[(0, 0)], [(1, 4)], [(0, 1), (0, 3), (2, 2)], [(2, 4)]], ids=str
)
def test_interrupted_training_ends_as_the_undisturbed_one(train, interrupts):
    model, state, run = train("undisturbed")
    for epoch, step in interrupts:
        with pytest.raises(KeyboardInterrupt) as stop:
            train("stopped", interrupt=(epoch, step))
        # After an epoch's last step comes its validation, which stops as well.
        expected = f"after epoch {epoch}, step {step + 1} of the next. The same command goes on"
        assert expected in str(stop.value)
    other, other_state, other_run = train("stopped")
    assert (other_state.epoch, other_state.step) == (state.epoch, state.step)
    assert other_state.history == state.history
    assert_bit_equal(values(model.variables), values(other.variables))
    assert_bit_equal(values(model.optimizer.variables), values(other.optimizer.variables))
    first, second = saved(run), saved(other_run)
    progress = [json.loads(each.pop("progress").item()) for each in (first, second)]
    assert progress[0]["history"] == progress[1]["history"]
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert run.history_path.read_text() == other_run.history_path.read_text()


def test_sigterm_stops_with_the_state_saved(train):
    with pytest.raises(KeyboardInterrupt, match="after epoch 1, step 3 of the next"):
        train(interrupt=(1, 2), number=signal.SIGTERM)
    _, state, _ = train()
    assert state.epoch == 3


def test_handlers_of_signals_are_put_back(train):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(interrupt=(0, 1))
    train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_finished_training_returns_at_once(train):
    model, state, run = train()
    before = run.checkpoint_path.read_bytes()
    other, other_state, _ = train()
    assert other_state == state
    assert run.checkpoint_path.read_bytes() == before
    assert_bit_equal(values(model.weights), values(other.weights))


def test_batches_reach_the_model_in_their_order(train, monkeypatch):
    asked = []
    get = SliceBatches.__getitem__

    def spy(self, index):
        if self.seed is not None:
            asked.append((self.epoch, self.first_step + index))
        return get(self, index)

    monkeypatch.setattr(SliceBatches, "__getitem__", spy)
    with pytest.raises(KeyboardInterrupt):
        train(interrupt=(1, 2))
    asked.clear()
    train()
    first, last = [(1, 3), (1, 4)], [(2, step) for step in range(STEPS)]
    # Before each `fit` Keras looks at two batches to learn their shape.
    assert asked == [*first, *first, *last[:2], *last]


def test_loss_that_is_no_number_stops_and_keeps_the_last_good_state(train, monkeypatch):
    _, _, run = train(epochs=1)
    before = run.checkpoint_path.read_bytes(), run.model_path.read_bytes()
    good = Autoencoder.compute_loss

    def spoilt(self, *arguments, **options):
        return good(self, *arguments, **options) * float("nan")

    monkeypatch.setattr(Autoencoder, "compute_loss", spoilt)
    with pytest.raises(InputError) as caught:
        train(epochs=2)
    message = str(caught.value)
    assert "is not finite, as seen in epoch 2 at step 1." in message
    assert f"The last good state, of epoch 2 and step 0, is kept in {run.path}." in message
    assert "--learning-rate" in message
    assert (run.checkpoint_path.read_bytes(), run.model_path.read_bytes()) == before


def test_loss_that_is_no_number_stops_within_the_epoch(train, monkeypatch):
    good = Autoencoder.compute_loss
    monkeypatch.setattr(
        Autoencoder, "compute_loss", lambda *inputs, **options: good(*inputs, **options) / 0.0 * 0.0
    )
    with pytest.raises(InputError, match="is not finite, as seen in epoch 1 at step 1"):
        train()


def test_environment_tells_what_was_otherwise_before(tmp_path):
    run, first = Run(tmp_path), {"devices": ["gpu:0"], "seed": 0}
    for _ in range(2):
        _write_run_metadata(run, {}, first)
        assert read_json(run.environment_path) == {**first, "earlier": []}
    second = {"devices": ["cpu:0"], "seed": 0}
    for _ in range(2):
        _write_run_metadata(run, {}, second)
        told = {**second, "earlier": [{"devices": ["gpu:0"]}]}
        assert read_json(run.environment_path) == told


def test_environment_that_is_damaged_is_written_anew(tmp_path, capsys):
    run, now = Run(tmp_path), {"devices": ["cpu:0"]}
    run.environment_path.write_text("{")
    _write_run_metadata(run, {}, now)
    assert read_json(run.environment_path) == {**now, "earlier": []}
    assert "environment.json is not valid JSON" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["validation", "epoch's end"])
def test_weights_that_are_no_numbers_are_never_saved(train, monkeypatch, moment):
    """Spoilt by the last step, whose loss was still a number."""
    _, _, run = train(epochs=1)
    before = run.checkpoint_path.read_bytes(), run.model_path.read_bytes()
    begin = CheckpointCallback.on_test_begin

    def spoil(self, logs=None):
        weight = self.model.trainable_variables[0]
        weight.assign(np.full(weight.shape, np.nan))
        if moment == "validation":
            self.stopped_by = "SIGTERM"
        begin(self, logs)

    monkeypatch.setattr(CheckpointCallback, "on_test_begin", spoil)
    with pytest.raises(InputError, match="not finite, as seen in epoch 2"):
        train(epochs=2)
    assert (run.checkpoint_path.read_bytes(), run.model_path.read_bytes()) == before


def test_collapse_of_the_codebook_is_said_with_what_to_try(train, monkeypatch, capsys):
    usage = iter([0.5, 0.09, 0.05, 0.02])
    end = CheckpointCallback.on_epoch_end
    monkeypatch.setattr(
        CheckpointCallback,
        "on_epoch_end",
        lambda self, epoch, logs: end(self, epoch, {**logs, "codebook_usage": next(usage)}),
    )
    train(epochs=3)
    assert "warning" not in capsys.readouterr().out
    train(epochs=4)
    said = capsys.readouterr().out
    assert "warning: only 2.0% of the codebook has been used for 3 epochs." in said
    assert "--restart-threshold" in said


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_damaged_state_without_one_before_is_refused_and_left_alone(train, share):
    _, _, run = train(epochs=1)
    run.previous_checkpoint_path.unlink()
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: int(share * len(content))])
    before = run.checkpoint_path.read_bytes(), run.model_path.read_bytes()
    with pytest.raises(InputError) as caught:
        train(epochs=2)
    assert f"{run.checkpoint_path} is damaged" in str(caught.value)
    assert (run.checkpoint_path.read_bytes(), run.model_path.read_bytes()) == before


def test_damaged_state_gives_way_to_the_one_before_it(train, capsys):
    _, whole, other = train("whole")
    _, _, run = train("run")
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    _, state, _ = train("run")
    said = capsys.readouterr().out
    assert f"warning: {run.checkpoint_path} is damaged" in said
    assert "Going on from the state before it, epoch 3, step 0." in said
    assert state.history == whole.history
    first, second = saved(run), saved(other)
    del first["progress"], second["progress"]
    assert first.keys() == second.keys()
    assert_bit_equal([*first.values()], [second[key] for key in first])


def test_state_before_a_damaged_one_survives_the_next_save(train):
    """Killed while it goes on, before its first save: the good state must not be lost."""
    model, _, run = train(epochs=2)
    run.checkpoint_path.write_bytes(b"torn")
    assert load_checkpoint(run, model).epoch == 1
    assert load_checkpoint(run, model).epoch == 1
    assert run.checkpoint_path.read_bytes() == run.previous_checkpoint_path.read_bytes()


def test_flipped_bit_in_the_state_is_noticed(train):
    _, _, run = train(epochs=1)
    run.previous_checkpoint_path.unlink()
    content = bytearray(run.checkpoint_path.read_bytes())
    content[len(content) // 2] ^= 1
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        train(epochs=2)


def test_state_of_another_architecture_is_refused(train):
    _, _, run = train(epochs=1)
    config = tiny_training()
    with pytest.raises(InputError, match="holds the state of another architecture than"):
        load_checkpoint(run, made(config, width=3))


def test_state_round_trip_holds_everything(train, tmp_path):
    model, state, run = train(epochs=1)
    copy = Run(tmp_path / "copy")
    save_checkpoint(copy, model, state)
    other = made(tiny_training(epochs=1, seed=5))
    assert (values(other.variables)[0] != values(model.variables)[0]).any()
    assert load_checkpoint(copy, other) == state
    assert_bit_equal(values(model.variables), values(other.variables))
    assert_bit_equal(values(model.optimizer.variables), values(other.optimizer.variables))


def test_state_fits_whatever_layers_were_made_before(train, tmp_path):
    _, state, run = train(epochs=1)
    layers.Conv2D(1, 1)
    again = Autoencoder()
    again.build((None, 64, 64, 1))
    compile_model(again, tiny_training(epochs=1), STEPS)
    assert load_checkpoint(run, again) == state


def test_fresh_run_has_no_progress(tmp_path):
    state = load_checkpoint(Run(tmp_path), made(tiny_training()))
    assert (state.epoch, state.step, state.history) == (0, 0, {})


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = tiny_training(learning_rate=0.5, warmup_steps=10)
    rate = learning_rate(config, 110)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(rate(5), 0.25, rtol=1e-6)
    np.testing.assert_allclose(rate(10), 0.5, rtol=1e-6)
    np.testing.assert_allclose(rate(60), 0.25, rtol=1e-5)
    np.testing.assert_allclose(rate(110), 0, atol=1e-7)


def test_learning_rate_may_be_constant():
    config = tiny_training(schedule="constant", warmup_steps=0, learning_rate=0.25)
    assert learning_rate(config, 100) == 0.25


def test_optimiser_is_that_of_the_configuration():
    config = dataclasses.replace(tiny_training(), beta_2=0.9, gradient_clip=2.0)
    optimizer = made(config).optimizer
    assert (optimizer.beta_2, optimizer.global_clipnorm) == (0.9, 2.0)
    assert optimizer.built
    assert made(dataclasses.replace(config, gradient_clip=0.0)).optimizer.global_clipnorm is None
