"""Speed and memory of untrained priors; each measurement yields rows of one table."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from benchmarks.harness import (
    Row,
    Setting,
    interleaved_medians,
    measure_memory,
    time_call,
)
from benchmarks.roofline import OPERATIONS_PER_WEIGHT, measure_training, training_rows
from keras import ops

from brainslices.compilation import compiled
from brainslices.data.code_grids import SplitCodes
from brainslices.training.optimizer import compile_model
from pixelcnn.conditions import Variable
from pixelcnn.config import DEFAULT
from pixelcnn.logits import filter_logits, sample_from_logits
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, uniform_noise
from pixelcnn.surprise import Surprise
from pixelcnn.training import CodeBatches
from tuning.workers import call

__all__ = ["MEASUREMENTS", "NaiveSampler"]

# The network for the sampling measurements, and a tiny one for `quick`.
NETWORK = {"channels": 96, "layers": 12, "kernel_size": 3, "first_kernel_size": 7}
QUICK_NETWORK = {"channels": 8, "layers": 2, "condition_width": 8, "head_width": 16}
CODES, SLICES, SIDE = 256, 16, 32
# Full passes of the naive sampler that are timed: all of them would take minutes.
NAIVE_CODES = 4
MEMORY_SIDE, MEMORY_BATCHES = 16, 10
CONDITIONS = (Variable("age", 20, 90), Variable("sex", categories=("F", "M")))
# Code grid and codebook of the default VQ-VAE on 256 x 256 slices of OASIS.
TRAINING_GRID, TRAINING_CODES, TRAINING_SLICES = (22, 26), 512, 512


class NaiveSampler:
    """Baseline of `Sampler`: one full forward pass, compiled, for each code.

    Args:
        model: a built `PixelCNN`.

    Call arguments:
        position: float array of shape (batch,), in [0, 1].
        uniform: float array of shape (batch, r, c), uniform noise in [0, 1).
        count: int, codes to sample in scan order.

    Returns:
        int32 array of shape (batch, r, c): the sampled codes, 0 elsewhere.
    """

    def __init__(self, model: PixelCNN):
        self.model, self.sample_code = model, compiled(self._sample_code, model)

    def __call__(self, position: np.ndarray, uniform: np.ndarray, count: int) -> np.ndarray:
        codes = np.zeros(uniform.shape, "int32")
        flat_codes, flat_uniform = (array.reshape(len(codes), -1) for array in (codes, uniform))
        for index in self.model.scan_order[:count]:
            noise = flat_uniform[:, index]
            flat_codes[:, index] = self.sample_code(codes, position, noise, np.int32(index))
        return codes

    def _sample_code(self, codes, position, noise, index):
        logits = self.model({"codes": codes, "position": position})
        logits = ops.reshape(logits, (codes.shape[0], -1, self.model.num_embeddings))
        return sample_from_logits(filter_logits(ops.take(logits, index, axis=1)), noise)


def measure_sampling(setting: Setting) -> Iterator[Row]:
    """Compare cached sampling with one full forward pass per code, and with one pass."""
    side = 8 if setting.quick else SIDE
    for attention_layers in (0, 2):
        model = _build_model(setting, side, attention_layers)
        cached, naive, one_pass = Sampler(model), NaiveSampler(model), _forward_pass(model)
        position, noise = _sampler_inputs(SLICES, model)
        codes = cached(position, noise)["codes"]
        naive(position, noise, 1), one_pass(codes, position)  # compiled before the clock starts
        candidates = {
            "cached": partial(time_call, cached, position, noise),
            "naive": partial(time_call, naive, position, noise, NAIVE_CODES),
            "pass": partial(time_call, one_pass, codes, position),
        }
        seconds = interleaved_medians(candidates, setting.rounds)
        factor = codes[0].size / NAIVE_CODES
        name = f"sample {SLICES} slices of {side} x {side} codes"
        if attention_layers:
            name = f"{name}, {attention_layers} attention layers"
        baseline_name = f"a full pass per code: {NAIVE_CODES} codes, times {factor:g}"
        baseline = seconds["naive"] * factor, baseline_name
        yield Row(name, "s", seconds["cached"], *baseline, at_least=400.0)
        baseline = seconds["pass"], "one teacher-forced pass"
        note = "at most 2.5 times a pass"
        name = f"{name}, against one pass"
        yield Row(name, "s", seconds["cached"], *baseline, at_least=1 / 2.5, note=note)


def measure_conditions(setting: Setting) -> Iterator[Row]:
    """Compare sampling with conditions, and with guidance, with sampling without."""
    side = 8 if setting.quick else SIDE
    plain, conditioned = (_build_model(setting, side, conditions=c) for c in ((), CONDITIONS))
    samplers = {
        "plain": Sampler(plain),
        "conditions": Sampler(conditioned),
        "guidance": Sampler(conditioned, guidance=2.0),
    }
    position, noise = _sampler_inputs(SLICES, plain)
    inputs = conditioned.with_conditions(position, {"age": 60, "sex": "F"})
    candidates = {}
    for name, sampler in samplers.items():
        batch_inputs = position if name == "plain" else inputs
        sampler(batch_inputs, noise)  # compiled before the clock starts
        candidates[name] = partial(time_call, sampler, batch_inputs, noise)
    seconds = interleaved_medians(candidates, setting.rounds)
    baseline = seconds["plain"], "no conditions"
    name = f"sample {SLICES} slices of {side} x {side} codes"
    yield Row(f"{name}, two conditions", "s", seconds["conditions"], *baseline, at_least=1 / 1.03)
    yield Row(f"{name}, guidance", "s", seconds["guidance"], *baseline, at_least=1 / 2)


def measure_scoring(setting: Setting) -> Iterator[Row]:
    """Compare the surprise of slices with one teacher-forced pass."""
    side = 8 if setting.quick else SIDE
    model = _build_model(setting, side)
    position, names = np.linspace(0, 1, SLICES, dtype="float32"), np.arange(SLICES).astype(str)
    shape = (SLICES, *model.grid_shape)
    codes = np.random.default_rng(0).integers(0, model.num_embeddings, shape, "int32")
    one_pass, surprise = _forward_pass(model), Surprise(model, codes, position, names)

    def score():
        return surprise.compare(surprise.nats(codes, position), position, names)

    one_pass(codes, position)  # compiled before the clock starts
    candidates = {"score": partial(time_call, score)}
    candidates["pass"] = partial(time_call, one_pass, codes, position)
    seconds = interleaved_medians(candidates, setting.rounds)
    name = f"surprise of {SLICES} slices of {side} x {side} codes"
    baseline = seconds["pass"], "one teacher-forced pass"
    yield Row(name, "s", seconds["score"], *baseline, at_least=1 / 1.2)


def _forward_pass(model):
    """Return a function that computes all logits of some slices and waits for them."""
    logits = compiled(lambda codes, position: model({"codes": codes, "position": position}), model)

    def compute(codes, position):
        return float(logits(codes, position)[0, 0, 0, 0])  # waits until the device has finished

    return compute


def measure_growth(setting: Setting) -> Iterator[Row]:
    """Measure the seconds per slice as the code grid grows, and as the batch grows."""
    sides = (4, 8) if setting.quick else (SIDE // 2, SIDE, 2 * SIDE)
    seconds = _sampling_seconds(setting, [(side, SLICES) for side in sides])
    for side, value in zip(sides, seconds, strict=True):
        factor = (side // sides[0]) ** 2
        baseline_name = f"{sides[0]} x {sides[0]} codes, times {factor}"
        baseline = (factor * seconds[0], baseline_name) if factor > 1 else ()
        growth = {"curve": "Sample, per slice", "x_label": "codes in the grid", "x": side**2}
        note = f"{SLICES} slices at a time"
        yield Row(
            f"sample a slice, {side} x {side} codes", "s", value, *baseline, note=note, **growth
        )
    batches = (1, 2) if setting.quick else (1, 2, 4, 8, 16, 32)
    seconds = _sampling_seconds(setting, [(sides[1], batch) for batch in batches])
    for batch, value in zip(batches, seconds, strict=True):
        baseline = (seconds[0], f"{batches[0]} at a time") if batch > batches[0] else ()
        yield Row(f"sample a slice, {batch} at a time", "s", value, *baseline)


def _sampling_seconds(setting, cases):
    """Return the seconds per slice of each (side of the grid, batch size)."""
    samplers = {side: Sampler(_build_model(setting, side)) for side, _ in cases}
    candidates = {}
    for side, batch in cases:
        inputs = _sampler_inputs(batch, samplers[side].model)
        samplers[side](*inputs)  # compiled before the clock starts
        candidates[side, batch] = partial(time_call, samplers[side], *inputs)
    medians = interleaved_medians(candidates, setting.few_rounds)
    return [medians[side, batch] / batch for side, batch in cases]


def measure_sampling_memory(setting: Setting) -> Iterator[Row]:
    """Measure the memory that sampling adds for one batch and for ten, in separate processes."""
    few, many = SLICES, MEMORY_BATCHES * SLICES
    side = 4 if setting.quick else MEMORY_SIDE
    candidates = {
        "few": lambda: call(_sampling_memory, setting, side, few),
        "many": lambda: call(_sampling_memory, setting, side, many),
    }
    added = interleaved_medians(candidates, setting.few_rounds)
    yield Row(f"memory, sample {few} slices", "GB", added["few"], note="includes compilation")
    baseline = added["few"], f"{few} slices"
    yield Row(f"memory, sample {many} slices", "GB", added["many"], *baseline, at_least=0.95)
    for factor in (1,) if setting.quick else (1, 2, 4):
        large = factor * side
        name = f"memory, sample {few} slices of {large} x {large} codes"
        value = call(_sampling_memory, setting, large, few)
        x_label = "codes in the grid"
        yield Row(name, "GB", value, curve=f"Sample {few} slices", x_label=x_label, x=large**2)


def _sampling_memory(setting, side, count):
    """Return the GB that sampling some slices, a batch at a time, adds to this process."""

    def sample():
        sampler = Sampler(_build_model(setting, side))
        for _ in sampler.batches(np.linspace(0, 1, count), 0, SLICES):
            pass

    _, _, added = measure_memory(sample)
    return added


def measure_prior(setting: Setting) -> Iterator[Row]:
    """Measure the training of the default prior in each precision."""
    model = _build_training_model(setting, "float32")
    operations = _count_operations(model)
    yield from training_rows("train default prior", setting, _training_rate, operations)


def _count_operations(model):
    """Return the floating-point operations of training on one slice: each kernel at each code."""
    kernels = [weight for weight in model.trainable_variables if "kernel" in weight.path]
    weights = sum(math.prod(kernel.shape) for kernel in kernels)
    return OPERATIONS_PER_WEIGHT * weights * math.prod(model.grid_shape)


def _training_rate(setting, policy, plain):
    model, batches = _build_training_model(setting, policy), _code_batches(setting)
    compile_model(model, DEFAULT.training, batches.steps_per_epoch)
    return measure_training(setting, model, batches, plain)


def _build_training_model(setting, policy):
    config = _config(setting)
    model = PixelCNN(TRAINING_GRID, TRAINING_CODES, dtype=policy, **dataclasses.asdict(config))
    model.build()
    return model


def _code_batches(setting):
    """Return batches of random codes with random variants, as `train` makes them."""
    rng = np.random.default_rng(0)
    count, batch_size = (16, 4) if setting.quick else (TRAINING_SLICES, DEFAULT.training.batch_size)
    shape = (DEFAULT.training.variants + 1, count, *TRAINING_GRID)
    codes, *variants = rng.integers(0, TRAINING_CODES, shape, "uint16")
    names = np.arange(count).astype(str)
    split = SplitCodes(codes, names, names, np.linspace(0, 1, count, dtype="float32"))
    return CodeBatches(split, batch_size, DEFAULT.training.seed, np.stack(variants))


def _config(setting, **changes):
    """Return the default model's configuration with changes, made tiny if `quick`."""
    if setting.quick:
        changes |= QUICK_NETWORK
    return dataclasses.replace(DEFAULT.model, **changes)


def _build_model(setting, side, attention_layers=0, conditions=()):
    """Build an untrained prior of square grids."""
    names = tuple(variable.name for variable in conditions)
    config = _config(setting, **NETWORK, attention_layers=attention_layers, conditions=names)
    options = dataclasses.asdict(config) | {"condition_variables": conditions}
    model = PixelCNN((side, side), 32 if setting.quick else CODES, **options)
    model.build()
    return model


def _sampler_inputs(count, model):
    position = np.linspace(0, 1, count, dtype="float32")
    return position, uniform_noise(0, range(count), model.grid_shape)


MEASUREMENTS = {
    "sampling": measure_sampling,
    "conditions": measure_conditions,
    "scoring": measure_scoring,
    "growth": measure_growth,
    "sampling_memory": measure_sampling_memory,
    "prior": measure_prior,
}
"""Name -> function that takes a `Setting` and yields rows."""
