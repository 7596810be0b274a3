"""Rates of trainings, compared with the peak rates of the machine."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from benchmarks.harness import GIGABYTE, Row, Setting, interleaved_medians, time_call
from keras import ops

from brainslices.data.batches import Batches
from brainslices.distributed.devices import list_gpus
from brainslices.training.loop import enable_determinism
from brainslices.training.pipeline import input_pipeline
from brainslices.training.precision import trainable_policies
from tuning.workers import call

__all__ = [
    "MEASUREMENTS",
    "OPERATIONS_PER_WEIGHT",
    "OneBatch",
    "matrix_multiplication",
    "measure_fit",
    "measure_training",
    "training_rows",
]

TERA = 10**12
# Training multiplies and adds with each weight in the forward pass, for the gradient of the layer's
# input, and for the weight's own.
OPERATIONS_PER_WEIGHT = 3 * 2
# Sides of the matrices: large enough to keep the device busy, small enough to take little time.
SIDE, GPU_SIDE, QUICK_SIDE = 2048, 8192, 256
PRODUCTS, GPU_PRODUCTS = 8, 100
# Epochs, steps of an epoch, and the sleep that stands in for a step.
PAUSE_EPOCHS, PAUSE_STEPS, PAUSE_SLEEP_S = 16, 250, 0.02
COPIED_BYTES, QUICK_COPIED_BYTES = GIGABYTE, 10**7


def matrix_multiplication(policy: str, quick: bool = False) -> Callable[[], float]:
    """Prepare products of large square matrices, the peak rate that a network's layers can reach.

    Args:
        policy: name of a Keras dtype policy, in whose compute dtype the products are.
        quick: measure too little for a stable value.

    Returns:
        Function that measures their TFLOP/s once.
    """
    side = QUICK_SIDE if quick else GPU_SIDE if list_gpus() else SIDE
    count = GPU_PRODUCTS if list_gpus() else PRODUCTS
    # On the device before the clock starts.
    matrix = ops.full((1, side, side), 1 / side, "float32")

    def multiply(matrix):
        left = right = ops.cast(matrix, keras.DTypePolicy(policy).compute_dtype)
        for _ in range(count):  # all elements are 1 / side: the product is the matrix again
            left = ops.matmul(left, right)
        return ops.sum(ops.cast(left, "float32"), axis=(1, 2))

    layer = keras.layers.Lambda(multiply, output_shape=(), dtype="float32")
    compute = keras.Sequential([keras.Input((side, side)), layer]).predict_on_batch
    compute(matrix)  # compiled before the clock starts
    return lambda: count * 2 * side**3 / time_call(compute, matrix) / TERA


def measure_machine(setting: Setting) -> Iterator[Row]:
    """Measure matrix products in each precision, and copying in the host's memory."""
    policies = trainable_policies()
    source = np.ones(QUICK_COPIED_BYTES if setting.quick else COPIED_BYTES, "uint8")
    target = np.zeros_like(source)

    def measure_copy():
        return 2 * source.nbytes / time_call(np.copyto, target, source) / GIGABYTE

    candidates = {policy: matrix_multiplication(policy, setting.quick) for policy in policies}
    rates = interleaved_medians({**candidates, "copy": measure_copy}, setting.rounds)
    note = "in TensorFloat-32 where TensorFlow has a GPU for it" if list_gpus() else ""
    yield Row("matrix products, float32", "TFLOP/s", rates["float32"], note=note)
    for policy in policies[1:]:
        name = f"matrix products, {keras.DTypePolicy(policy).compute_dtype}"
        yield Row(name, "TFLOP/s", rates[policy], rates["float32"], "float32")
    yield Row("memory copy", "GB/s", rates["copy"], note="bytes read plus bytes written")


def measure_pauses(setting: Setting) -> Iterator[Row]:
    """Measure the longest time between two steps over many short epochs of a step that sleeps."""
    # In processes of their own: a generator of TensorFlow slows down all that follows it.
    ours, keras_own = (call(_longest_pause, setting, own) for own in (True, False))
    baseline = keras_own, "the same PyDataset in `fit`"
    yield Row("longest pause between steps of short epochs", "s", ours, *baseline, at_most=2.0)


def _longest_pause(setting, own_pipeline):
    epochs, steps = (2, 5) if setting.quick else (PAUSE_EPOCHS, PAUSE_STEPS)
    ends = []

    def sleep(batch, logs):
        time.sleep(PAUSE_SLEEP_S)
        ends.append(time.perf_counter())

    layers = [keras.layers.Dense(1), keras.layers.ActivityRegularization(l2=1.0)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile("sgd")
    step = keras.callbacks.LambdaCallback(on_train_batch_end=sleep)
    batches = _Numbers(steps, 1, seed=0)
    data = input_pipeline(batches) if own_pipeline else batches
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=[step])
    return float(np.diff(ends).max())


class _Numbers(Batches):
    """Batches that cost nothing to load."""

    def sample_augmentation(self, count, rng):
        return np.zeros(count)

    def load(self, indices, augmentation):
        return indices.astype("float32")[:, None]


class OneBatch(keras.utils.PyDataset):
    """The first of some batches at every step, loaded once.

    Args:
        batches: the batches; an epoch has as many steps as theirs.
    """

    def __init__(self, batches: Batches):
        super().__init__()
        self.batch, self.batch_size, self.steps = batches[0], batches.batch_size, len(batches)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple:
        return self.batch


def measure_training(setting: Setting, model: keras.Model, batches: Batches, plain: bool) -> float:
    """Return the slices per second of training.

    Call it in a process of its own: op determinism, which a plain `fit` does without, stays on.

    Args:
        setting: as `measure_fit`.
        model: compiled as `train` does.
        batches: its training batches.
        plain: train by plain `fit` on one batch in memory instead.
    """
    if plain:
        model.compile(keras.optimizers.Adam())
        return measure_fit(setting, model, input_pipeline(OneBatch(batches)), batches.batch_size)
    enable_determinism()
    return measure_fit(setting, model, input_pipeline(batches), batches.batch_size)


def measure_fit(setting: Setting, model: keras.Model, data: Any, batch_size: int) -> float:
    """Return the slices per second of `fit`, without compilation and the first steps.

    Args:
        setting: takes fewer steps if `quick`.
        model: a compiled model.
        data: an array of images, or batches in any form that `fit` reads; repeated if too few.
        batch_size: slices per batch.
    """
    warmup, steps = (1, 2) if setting.quick else (2, 8)
    finished_steps, times = itertools.count(1), []

    def record_time(batch, logs):
        step = next(finished_steps)
        if step in (warmup, warmup + steps):
            float(logs["loss"])  # waits until the device has finished the step
            times.append(time.perf_counter())
        model.stop_training = step == warmup + steps

    timer = keras.callbacks.LambdaCallback(on_train_batch_end=record_time)
    max_epochs = warmup + steps
    size = batch_size if isinstance(data, np.ndarray) else None
    options = {"batch_size": size, "epochs": max_epochs, "shuffle": False}
    model.fit(data, **options, verbose=0, callbacks=[timer])
    return batch_size * steps / (times[1] - times[0])


def training_rows(
    name: str,
    setting: Setting,
    measure_rate: Callable[[Setting, str, bool], float],
    operations: float,
) -> Iterator[Row]:
    """Compare a training in each precision with a plain `fit` and with matrix products.

    Args:
        name: what is trained.
        setting: the inputs.
        measure_rate: function of (setting, dtype policy, whether to train by plain `fit` on one
            batch) that returns slices per second; called in a process of its own.
        operations: floating-point operations of training on one slice.
    """

    def measure_policy(policy, multiply):
        rate = call(measure_rate, setting, policy, False)
        plain_rate = call(measure_rate, setting, policy, True)
        return rate, plain_rate, multiply()

    candidates = {
        policy: partial(measure_policy, policy, matrix_multiplication(policy, setting.quick))
        for policy in trainable_policies()
    }
    medians = interleaved_medians(candidates, setting.few_rounds)
    float32_rate, *_ = medians["float32"]
    for policy, (rate, plain_rate, peak) in medians.items():
        yield Row(
            f"{name}, {policy}",
            "slices/s",
            rate,
            plain_rate,
            "plain `fit`, one batch in memory",
            at_least=0.95,
            note="" if policy == "float32" else f"{rate / float32_rate:.2f}x float32",
        )
        yield Row(
            f"{name}, {policy}: arithmetic",
            "TFLOP/s",
            rate * operations / TERA,
            peak,
            "products of large matrices",
            note=f"{operations / GIGABYTE:.2f} GFLOP per slice",
        )


MEASUREMENTS = {"machine": measure_machine, "pauses": measure_pauses}
"""Name -> function that takes a `Setting` and yields rows."""
