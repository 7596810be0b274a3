"""Speed and memory of stage two, with untrained priors; each measurement yields rows of a table."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import keras
import numpy as np
from benchmarks.harness import (
    PROCESS_STATUS,
    PeakMemory,
    Row,
    Setting,
    interleaved_medians,
    timed,
    training_rate,
)
from benchmarks.one_batch import OneBatch
from benchmarks.roofline import OPERATIONS_PER_WEIGHT, training_rows
from keras import ops

from brainslices.data.code_grids import SplitCodes
from brainslices.training.loop import enable_determinism
from brainslices.training.optimizer import compile_model
from pixelcnn.config import DEFAULT, PixelCNNConfig
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import Sampler, compiled, filter_logits, sample_from_logits, uniform_noise
from pixelcnn.training import CodeBatches
from tuning.workers import call

__all__ = ["MEASUREMENTS", "NaiveSampler"]

# The network that sampling is measured with, and a tiny one to see that it works.
NET = {"channels": 96, "layers": 12, "kernel_size": 3, "first_kernel_size": 7}
QUICK_NET = {"channels": 8, "layers": 2, "condition_width": 8, "head_width": 16}
CODES, SLICES, SIDE = 256, 16, 32
# Full passes of the naive sampler that are timed: all of them would take minutes.
NAIVE_CODES = 4
MEMORY_SIDE, MEMORY_BATCHES = 16, 10
# The code grid of the default VQ-VAE on 256 x 256 slices of OASIS, and its codebook.
TRAINING_GRID, TRAINING_CODES, TRAINING_SLICES = (22, 26), 512, 512


class NaiveSampler:
    """The peer of `Sampler`: one full forward pass, compiled, for each code.

    Args:
        model: a built `PixelCNN`.

    Call arguments:
        position: float array of shape (batch,), in [0, 1].
        uniform: float array of shape (batch, r, c), in [0, 1): all of the chance there is.
        count: int, codes to draw in scan order.

    Returns:
        int32 array of shape (batch, r, c): the codes drawn, 0 elsewhere.
    """

    def __init__(self, model):
        self.model, self.draw_code = model, compiled(self._draw_code, model)

    def __call__(self, position, uniform, count):
        codes = np.zeros(uniform.shape, "int32")
        flat = codes.reshape(len(codes), -1)
        for cell in self.model.scan_order[:count]:
            chance = uniform.reshape(flat.shape)[:, cell]
            flat[:, cell] = self.draw_code(codes, position, chance, np.int32(cell))
        return codes

    def _draw_code(self, codes, position, chance, cell):
        logits = self.model({"codes": codes, "position": position})
        logits = ops.reshape(logits, (codes.shape[0], -1, self.model.num_embeddings))
        return sample_from_logits(filter_logits(ops.take(logits, cell, axis=1)), chance)


def measure_sampling(setting: Setting) -> Iterator[Row]:
    """Cached sampling beside a full forward pass for each code, and beside a single one."""
    side = 8 if setting.quick else SIDE
    for attention_layers in (0, 2):
        model = _model(setting, side, attention_layers)
        sample, naive, one_pass = Sampler(model), NaiveSampler(model), _forward_pass(model)
        chance = _chance(SLICES, model)
        codes = sample(*chance)["codes"]
        naive(*chance, 1), one_pass(codes, chance[0])  # compiled before the clock starts
        sides = {
            "cached": partial(timed, sample, *chance),
            "naive": partial(timed, naive, *chance, NAIVE_CODES),
            "pass": partial(timed, one_pass, codes, chance[0]),
        }
        seconds = {
            name: each for name, (each,) in interleaved_medians(sides, setting.rounds).items()
        }
        ours, scale = seconds["cached"], codes[0].size / NAIVE_CODES
        name = f"sample {SLICES} slices of {side} x {side} codes"
        if attention_layers:
            name = f"{name}, {attention_layers} attentions"
        against = f"a full pass for each code: {NAIVE_CODES} codes, times {scale:g}"
        peer = {"peer": seconds["naive"] * scale, "against": against, "at_least": 400.0}
        yield Row(name, "s", ours, **peer)
        peer = {"peer": seconds["pass"], "against": "one teacher-forced pass", "at_least": 1 / 2.5}
        yield Row(f"{name}, and one pass", "s", ours, **peer, note="at most 2.5 times a pass")


def _forward_pass(model):
    """Function that computes all logits of some slices, and waits for them."""
    logits = compiled(lambda codes, position: model({"codes": codes, "position": position}), model)

    def compute(codes, position):
        # A device may lag behind; the value is there once it is done.
        return float(logits(codes, position)[0, 0, 0, 0])

    return compute


def measure_growth(setting: Setting) -> Iterator[Row]:
    """Seconds for a slice as the code grid grows, and as more slices are sampled at a time."""
    grids = (4, 8) if setting.quick else (SIDE // 2, SIDE, 2 * SIDE)
    batches = (1, 2) if setting.quick else (1, 2, 4, 8, 16, 32)
    yield from _grown(setting, {side: (side, SLICES) for side in grids}, _grid_row)
    yield from _grown(setting, {size: (grids[1], size) for size in batches}, _batch_row)


def _grown(setting, cases, as_row):
    """A row for each (side of the grid, batch), beside the first's."""
    models = {side: _model(setting, side) for side in {side for side, _ in cases.values()}}
    sides = {}
    for key, (side, batch) in cases.items():
        chance = _chance(batch, models[side])
        sample = Sampler(models[side])
        sample(*chance)
        sides[key] = partial(timed, sample, *chance)
    medians = interleaved_medians(sides, setting.few_rounds)
    found = {key: medians[key][0] / batch for key, (_, batch) in cases.items()}
    first = next(iter(cases))
    for key in cases:
        yield as_row(key, found[key], None if key == first else first, found[first])


def _grid_row(side, seconds, first, least):
    name = f"sample a slice, {side} x {side} codes"
    growth = {"curve": "Sample, for each slice", "grows": "codes of the grid", "size": side**2}
    if first is None:
        return Row(name, "s", seconds, note=f"{SLICES} slices at a time", **growth)
    times = (side // first) ** 2
    against = f"{first} x {first} codes, times {times}"
    return Row(name, "s", seconds, peer=times * least, against=against, **growth)


def _batch_row(batch, seconds, first, least):
    peer = {} if first is None else {"peer": least, "against": f"{first} at a time"}
    return Row(f"sample a slice, {batch} at a time", "s", seconds, **peer)


def measure_memory(setting: Setting) -> Iterator[Row]:
    """Memory that sampling adds for one batch and for ten, each in a process of its own."""
    if not PROCESS_STATUS.exists():
        return
    few, many = SLICES, MEMORY_BATCHES * SLICES
    side = 4 if setting.quick else MEMORY_SIDE
    sides = {count: partial(call, _sampling_memory, setting, side, count) for count in (few, many)}
    added = {
        count: each for count, (each,) in interleaved_medians(sides, setting.few_rounds).items()
    }
    yield Row(f"memory, sample {few} slices", "GB", added[few], note="compilation included")
    peer = {"peer": added[few], "against": f"{few} slices", "at_least": 0.95}
    yield Row(f"memory, sample {many} slices", "GB", added[many], **peer)
    for times in (1,) if setting.quick else (1, 2, 4):
        wide = times * side
        added = call(_sampling_memory, setting, wide, few)
        growth = {"curve": f"Sample {few} slices", "grows": "codes of the grid", "size": wide**2}
        yield Row(f"memory, sample {few} slices of {wide} x {wide} codes", "GB", added, **growth)


def _sampling_memory(setting, side, count):
    """GB that a process gains which samples some slices, a batch at a time."""
    with PeakMemory() as peak:
        sampler = Sampler(_model(setting, side))
        for _ in sampler.batches(np.linspace(0, 1, count), 0, SLICES):
            pass
    return peak.resident - peak.before


def measure_prior(setting: Setting) -> Iterator[Row]:
    """Training of the default prior in each precision, beside plain `fit` on one batch."""
    model = _training_model(_config(setting, DEFAULT.model), "float32")
    yield from training_rows("train default prior", setting, _rate, _operations(model))


def _operations(model):
    """Floating-point operations of training on a slice: each kernel is used at each code."""
    kernels = [weight for weight in model.trainable_variables if "kernel" in weight.path]
    weights = sum(math.prod(kernel.shape) for kernel in kernels)
    return OPERATIONS_PER_WEIGHT * weights * math.prod(model.grid_shape)


def _rate(setting, policy, plain):
    """Slices per second of training a prior as `train` does, or by plain `fit` on one batch.

    In a process of its own: op determinism, which a plain `fit` does without, is a process's.
    """
    model = _training_model(_config(setting, DEFAULT.model), policy)
    batches = _code_batches(setting)
    if plain:
        model.compile(keras.optimizers.Adam())
        return training_rate(setting, model, OneBatch(batches))
    enable_determinism()
    compile_model(model, DEFAULT.training, batches.steps_per_epoch)
    return training_rate(setting, model, batches)


def _training_model(config, policy):
    model = PixelCNN(TRAINING_GRID, TRAINING_CODES, dtype=policy, **dataclasses.asdict(config))
    model.build()
    return model


def _code_batches(setting):
    """Random codes, with random variants, as `train` takes them."""
    draw = np.random.default_rng(0)
    count, batch_size = (16, 4) if setting.quick else (TRAINING_SLICES, DEFAULT.training.batch_size)
    shape = (DEFAULT.training.variants + 1, count, *TRAINING_GRID)
    codes, *variants = draw.integers(0, TRAINING_CODES, shape, "uint16")
    names = np.arange(count).astype(str)
    split = SplitCodes(codes, names, names, np.linspace(0, 1, count, dtype="float32"))
    return CodeBatches(split, batch_size, DEFAULT.training.seed, np.stack(variants))


def _config(setting, config: PixelCNNConfig) -> PixelCNNConfig:
    return dataclasses.replace(config, **QUICK_NET) if setting.quick else config


def _model(setting, side, attention_layers=0):
    """An untrained prior of square grids."""
    net = dataclasses.replace(DEFAULT.model, **NET, attention_layers=attention_layers)
    config = dataclasses.asdict(_config(setting, net))
    model = PixelCNN((side, side), 32 if setting.quick else CODES, **config)
    model.build()
    return model


def _chance(count, model):
    """Positions and noise of some slices."""
    position = np.linspace(0, 1, count, dtype="float32")
    return position, uniform_noise(0, range(count), model.grid_shape)


MEASUREMENTS = {
    "sampling": measure_sampling,
    "growth": measure_growth,
    "sampling_memory": measure_memory,
    "prior": measure_prior,
}
"""Name -> function that takes a `Setting` and yields rows."""
