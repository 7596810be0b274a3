"""What tests of trainings share: the files of a run, signals at chosen steps, a tiny training."""

import json
import signal

import keras
import numpy as np
from helpers import tiny_training
from keras import layers, ops

from brainslices.data.batches import SliceBatches
from brainslices.training.callbacks import Objective, StopCallback
from brainslices.training.loop import fit
from brainslices.training.optimizer import compile_model

ON_STEP = StopCallback.on_train_batch_end


def contents(path):
    """Bytes of every file of a run that a rejected training must leave alone."""
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file() and item.name not in (".lock", "environment.json")
    }


def interrupt_after(monkeypatch, places, number=signal.SIGINT):
    """Raise a signal at the end of some steps, each given as (finished epochs, finished steps)."""
    remaining = list(places)

    def on_train_batch_end(self, batch, logs=None):
        if remaining and (self.progress.epoch, self.progress.step) == remaining[0]:
            remaining.pop(0)
            signal.raise_signal(number)
        ON_STEP(self, batch, logs)

    monkeypatch.setattr(StopCallback, "on_train_batch_end", on_train_batch_end)


# A training of the smallest model that has all kinds of state.

STEPS = 5
OBJECTIVE = Objective("val_ssim", "max")


class NumberedArchive:
    """Stands in for a `SliceArchive`: slice i is a ramp scaled by i."""

    def load(self, rows):
        ramp = np.linspace(0, 1, 8, dtype="float32").reshape(4, 2, 1)
        return ramp * np.float32(rows)[:, None, None, None] / 50


class Autoencoder(keras.Model):
    """A model with weights, a random generator (dropout) and a metric."""

    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.steps = [
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dropout(0.3, seed=1),
            layers.Dense(8),
            layers.Reshape((4, 2, 1)),
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
        loss = ops.mean(ops.square(x - ops.cast(y_pred, "float32")))
        self.score.update_state(1 - loss)
        return loss

    def get_config(self):
        return {"width": self.width}


def compiled_model(config, width=3):
    """A compiled autoencoder with the initial weights of the configuration's seed."""
    keras.utils.set_random_seed(config.seed)
    model = Autoencoder(width)
    model.build((None, 4, 2, 1))
    compile_model(model, config, STEPS)
    return model


def fit_tiny(run, **changes):
    """Train an autoencoder in a run folder for three epochs of five steps: (model, progress)."""
    config = tiny_training(**{"epochs": 3, "average": 0.5, **changes})
    run.path.mkdir(exist_ok=True)
    model = compiled_model(config)
    batches = SliceBatches(NumberedArchive(), np.arange(8 * STEPS), 8, config.seed, mirror=True)
    validation = SliceBatches(NumberedArchive(), np.arange(16), 8)
    return model, fit(model, batches, validation, run, config, OBJECTIVE)


def saved_arrays(run):
    """Arrays of a run's checkpoint by name, without the progress."""
    with np.load(run.checkpoint_path) as file:
        return {key: file[key] for key in file.files if key != "progress"}


def saved_progress(run):
    """Progress in a run's checkpoint, as a dict."""
    with np.load(run.checkpoint_path) as file:
        return json.loads(file["progress"].item())
