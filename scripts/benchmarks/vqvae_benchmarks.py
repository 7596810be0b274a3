"""Speed and memory of the archive and of the VQ-VAE; each measurement yields rows of one table."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import keras
import numpy as np
from benchmarks.harness import (
    Row,
    Setting,
    idle_memory,
    interleaved_medians,
    measure_memory,
    peak_gpu_memory,
    time_call,
)
from benchmarks.roofline import (
    OPERATIONS_PER_WEIGHT,
    OneBatch,
    measure_fit,
    measure_training,
    training_rows,
)
from benchmarks.tutorial_vqvae import TutorialVQVAE, one_hot_quantize
from keras import ops

from brainslices.data.archive import SliceArchive
from brainslices.data.batches import SliceBatches
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.evaluation.image_metrics import score_slices
from brainslices.evaluation.ssim import ssim_scores
from brainslices.training.loop import enable_determinism
from brainslices.training.optimizer import compile_model
from brainslices.training.pipeline import input_pipeline
from brainslices.training.precision import resolve_precision, trainable_policies
from tuning.workers import call
from vqvae.config import PRESETS
from vqvae.quantizer import nearest_codes
from vqvae.training import build_model

__all__ = ["MEASUREMENTS"]

LATENTS, LATENT_WIDTH, CODES = 1_000_000, 64, 4096
QUICK_LATENTS, QUICK_CODES, QUICK_BATCH = 20_000, 512, 8
# The one-hot quantiser gets one tenth of the latents: all would take 16 GB per matrix.
ONE_HOT_DIVISOR = 10
# Growth is measured on the training slices divided by these, and with these codebooks.
TRAINING_DIVISORS = (8, 4, 2, 1)
CODEBOOK_SIZES, GROWTH_LATENTS = (64, 256, 1024, 4096), 100_000
SCORED_SLICES = 64
TUTORIAL = "tutorial form, all float32 images in memory"


def measure_start(setting: Setting) -> Iterator[Row]:
    """Measure the seconds until each command has answered `--help`."""

    def time_help(path):
        command = [sys.executable, path, "--help"]
        return time_call(partial(subprocess.run, command, check=True, capture_output=True))

    commands = sorted(setting.scripts.glob("[!_]*.py"))
    candidates = {path.name: partial(time_help, path) for path in commands}
    for name, seconds in interleaved_medians(candidates, setting.rounds).items():
        yield Row(f"{name} --help", "s", seconds, at_most=1.0)


def measure_archive(setting: Setting) -> Iterator[Row]:
    """Measure the seconds to make an archive from images, and to open one."""
    if setting.source:
        folder = setting.workspace / "archive"
        config = SourceConfig(source=str(setting.source), out=folder, overwrite=True)
        make = partial(time_call, make_archive, config)
        seconds = interleaved_medians({"make": make}, setting.few_rounds)["make"]
        note = f"{len(SliceArchive.open(folder).index)} images"
        yield Row("make the archive", "s", seconds, at_most=30.0, note=note)
    open_archive = partial(time_call, SliceArchive.open, setting.archive)
    seconds = interleaved_medians({"open": open_archive}, setting.rounds)["open"]
    note = f"{len(SliceArchive.open(setting.archive).index)} slices"
    yield Row("open the archive", "s", seconds, at_most=0.2, note=note)


def measure_training_memory(setting: Setting) -> Iterator[Row]:
    """Measure the peak memory of training over that of an idle Keras, in separate processes."""
    idle, tutorial = call(idle_memory), call(_tutorial_memory, setting)
    for preset, policy in itertools.product(PRESETS, trainable_policies()):
        peak, gpu = call(_training_memory, setting, preset, policy)
        baseline = (tutorial - idle, TUTORIAL) if preset == "seed" else ()
        name = f"memory, train {preset}, {policy}"
        yield Row(name, "GB", peak - idle, *baseline, at_most=1.0)
        if gpu:
            yield Row(f"{name}: GPU", "GB", gpu)


def _training_memory(setting, preset, policy):
    """Return the peaks of an epoch, which reads every training slice: GB of host and GPU."""

    def train():
        enable_determinism()
        model, batches = _prepare_training(setting, preset, policy)
        steps = 2 if setting.quick else batches.steps_per_epoch
        model.fit(batches, steps_per_epoch=steps, verbose=0)

    _, peak, _ = measure_memory(train)
    return peak, peak_gpu_memory()


def _tutorial_memory(setting):
    def train():
        model, images, batch_size = _prepare_tutorial(setting)
        model.fit(images, batch_size=batch_size, steps_per_epoch=2, verbose=0)

    _, peak, _ = measure_memory(train)
    return peak


def measure_seed(setting: Setting) -> Iterator[Row]:
    """Compare the training of the `seed` preset with the tutorial form of the same network."""
    auto, reason = resolve_precision("auto", max(PRESETS["seed"].model.channels))
    candidates = {
        "tutorial": lambda: call(_tutorial_rate, setting),
        "float32": lambda: call(_training_rate, setting, "float32", False, "seed"),
        "auto": lambda: call(_training_rate, setting, auto, False, "seed"),
    }
    rates = interleaved_medians(candidates, setting.few_rounds)
    for policy, note in (("float32", ""), ("auto", f"{auto}: {reason}")):
        baseline = rates["tutorial"], TUTORIAL
        yield Row(
            f"train seed, {policy}", "slices/s", rates[policy], *baseline, at_least=1.5, note=note
        )


def measure_default(setting: Setting) -> Iterator[Row]:
    """Measure the training of the `default` preset in each precision, and its input pipeline."""
    model, batches = _prepare_training(setting, "default", "float32")
    rows = list(training_rows("train default", setting, _training_rate, _count_operations(model)))
    yield from rows
    steps = 2 if setting.quick else 20

    def measure_input():
        seconds = time_call(lambda: [batches[step] for step in range(steps)])
        return batches.batch_size * steps / seconds

    rate = interleaved_medians({"input": measure_input}, setting.few_rounds)["input"]
    fastest = max(row.value for row in rows if row.unit == "slices/s")
    name = "input pipeline alone"
    yield Row(name, "slices/s", rate, fastest, "training, the fastest precision")


def _count_operations(model):
    """Return the floating-point operations of training on one slice: those of the convolutions."""
    weights = 0
    for layer in (*model.encoder.layers, *model.decoder.layers):
        if isinstance(layer, keras.layers.Conv2DTranspose):
            weights += math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            weights += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    return OPERATIONS_PER_WEIGHT * weights


def measure_evaluation(setting: Setting) -> Iterator[Row]:
    """Measure scores and reconstructions, a batch at a time as in training and `reconstruct.py`."""
    archive = SliceArchive.open(setting.archive)
    count = QUICK_BATCH if setting.quick else SCORED_SLICES
    images = archive.load(archive.indices("validate")[:count])
    distorted = np.clip(images * 0.9 + 0.02, 0, 1).astype("float32")
    model, _ = _prepare_training(setting, "default", "float32")
    scorer = _build_scorer(images.shape[1:])
    functions = {
        "score": lambda: scorer.predict_on_batch([images, distorted]),
        "scikit-image": lambda: score_slices(images[..., 0], distorted[..., 0]),
        "reconstruct": lambda: model.predict_on_batch(images)["reconstruction"],
        "train": lambda: float(model.train_on_batch(images, return_dict=True)["loss"]),
    }
    for function in functions.values():
        function()  # compiled before the clock starts
    candidates = {name: partial(time_call, function) for name, function in functions.items()}
    medians = interleaved_medians(candidates, setting.rounds)
    rates = {name: len(images) / seconds for name, seconds in medians.items()}
    baseline = rates["scikit-image"], "scikit-image, a slice at a time"
    yield Row("score with ssim and ssim_foreground", "slices/s", rates["score"], *baseline)
    baseline = rates["train"], "a training step on the same slices"
    yield Row("reconstruct, default", "slices/s", rates["reconstruct"], *baseline)


def _build_scorer(image_shape):
    pair = keras.Input(image_shape), keras.Input(image_shape)
    scores = keras.layers.Lambda(
        lambda images: ops.stack(ssim_scores(*images), axis=-1), output_shape=(2,)
    )
    return keras.Model(pair, scores(pair))


def measure_slices(setting: Setting) -> Iterator[Row]:
    """Measure time and memory of training `seed` as the archive grows, in separate processes."""
    total = len(SliceArchive.open(setting.archive).indices("train"))
    baseline = ()
    for divisor in TRAINING_DIVISORS[-1:] if setting.quick else TRAINING_DIVISORS:
        count = total // divisor
        rate, memory = call(_measure_epoch, setting, count)
        growth = {"x_label": "training slices", "x": count}
        name = f"train seed on {count} slices"
        yield Row(f"{name}, per slice", "s", 1 / rate, curve="Train, per slice", **growth)
        yield Row(f"memory, {name}", "GB", memory, *baseline, curve="Train", **growth)
        baseline = baseline or (memory, "the fewest slices")


def measure_pipeline(setting: Setting) -> Iterator[Row]:
    """Compare a training through the input pipeline with one that reads the same `PyDataset`."""
    candidates = {own: partial(call, _small_rate, setting, own) for own in (True, False)}
    rates = interleaved_medians(candidates, setting.few_rounds)
    baseline = rates[False], "the same PyDataset in `fit`"
    yield Row("train small, float32", "slices/s", rates[True], *baseline, at_least=1.0)


def _small_rate(setting, own_pipeline):
    enable_determinism()
    model, batches = _prepare_training(setting, "small", "float32")
    data = input_pipeline(batches) if own_pipeline else batches
    return measure_fit(setting, model, data, batches.batch_size)


def _measure_epoch(setting, count):
    """Return the slices per second of a whole epoch on `count` slices, and the GB that it adds."""

    def train():
        enable_determinism()
        model, batches = _prepare_training(setting, "seed", "float32", count)
        options = {"shuffle": False, "verbose": 0}
        model.fit(input_pipeline(OneBatch(batches)), steps_per_epoch=1, **options)  # compiles
        seconds = time_call(partial(model.fit, input_pipeline(batches), **options))
        return len(batches) * batches.batch_size / seconds

    rate, _, added = measure_memory(train)
    return rate, added


def measure_codes(setting: Setting) -> Iterator[Row]:
    """Measure time and memory of the nearest-code search as the codebook grows."""
    count = QUICK_LATENTS if setting.quick else GROWTH_LATENTS
    smallest, first_seconds = CODEBOOK_SIZES[0], None
    for codes in CODEBOOK_SIZES[:1] if setting.quick else CODEBOOK_SIZES:
        seconds, memory = call(_measure_quantization, count, codes, False)
        growth = {"curve": "Quantise", "x_label": "codes in the codebook", "x": codes}
        name = f"quantise {count:,} latents, {codes} codes"
        baseline = ()
        if first_seconds is not None:
            factor = codes // smallest
            baseline = first_seconds * factor, f"{smallest} codes, times {factor}"
        yield Row(name, "s", seconds, *baseline, **growth)
        yield Row(f"memory, {name}", "GB", memory, **growth)
        first_seconds = first_seconds or seconds


def measure_quantizer(setting: Setting) -> Iterator[Row]:
    """Compare time and memory of quantising many latents with the one-hot form."""
    count, codes = (QUICK_LATENTS, QUICK_CODES) if setting.quick else (LATENTS, CODES)
    one_hot_count = count // ONE_HOT_DIVISOR
    candidates = {
        "search": lambda: call(_measure_quantization, count, codes, False),
        "one-hot": lambda: call(_measure_quantization, one_hot_count, codes, True),
    }
    medians = interleaved_medians(candidates, setting.few_rounds)
    (seconds, memory), one_hot = medians["search"], medians["one-hot"]
    one_hot_seconds, one_hot_memory = (ONE_HOT_DIVISOR * value for value in one_hot)
    baseline_name = f"one-hot form on {one_hot_count:,} latents, times {ONE_HOT_DIVISOR}"
    name = f"quantise {count:,} x {LATENT_WIDTH} latents, {codes:,} codes"
    yield Row(name, "s", seconds, one_hot_seconds, baseline_name)
    note = "includes the quantised latents, not the input"
    baseline = one_hot_memory, baseline_name
    yield Row(f"memory, {name}", "GB", memory, *baseline, at_most=1.0, note=note)


def _measure_quantization(count, num_embeddings, one_hot):
    """Return the seconds of one quantisation, and the GB that it adds."""
    rng = np.random.default_rng(0)
    latents = ops.convert_to_tensor(rng.standard_normal((count, LATENT_WIDTH), "float32"))
    codebook = ops.convert_to_tensor(rng.standard_normal((num_embeddings, LATENT_WIDTH), "float32"))

    def quantize(latents):
        if one_hot:
            return one_hot_quantize(latents, codebook)
        return ops.take(codebook, nearest_codes(latents, codebook), axis=0)

    layer = keras.layers.Lambda(quantize, output_shape=(LATENT_WIDTH,))
    # Compiled, as in training: there the blocks of the search may run in parallel.
    compute = keras.Sequential([keras.Input((LATENT_WIDTH,)), layer]).predict_on_batch
    compute(latents[:2])
    seconds, _, added = measure_memory(time_call, compute, latents)
    return seconds, added


def _training_rate(setting, policy, plain=False, preset="default"):
    return measure_training(setting, *_prepare_training(setting, preset, policy), plain)


def _tutorial_rate(setting):
    model, images, batch_size = _prepare_tutorial(setting)
    return measure_fit(setting, model, images, batch_size)


def _prepare_training(setting, name, policy, count=None):
    """Return a compiled model of a preset and its batches, as `train` makes them.

    Trains on the first `count` slices, by default on all.
    """
    archive = SliceArchive.open(setting.archive)
    rows, preset = archive.indices("train")[:count], PRESETS[name]
    batch_size = QUICK_BATCH if setting.quick else preset.training.batch_size
    keras.config.set_dtype_policy(policy)
    model = build_model(archive, rows, preset.model, preset.training.seed)
    batches = SliceBatches(archive, rows, batch_size, preset.training.seed)
    compile_model(model, preset.training, batches.steps_per_epoch)
    return model, batches


def _prepare_tutorial(setting):
    """Return the compiled tutorial model, all of its images, and its batch size."""
    archive = SliceArchive.open(setting.archive)
    images = archive.load(archive.indices("train"))
    model = TutorialVQVAE(float(images.var()))
    model.compile(keras.optimizers.Adam())
    batch_size = QUICK_BATCH if setting.quick else PRESETS["seed"].training.batch_size
    return model, images, min(batch_size, len(images))


MEASUREMENTS = {
    "start": measure_start,
    "archive": measure_archive,
    "memory": measure_training_memory,
    "seed": measure_seed,
    "default": measure_default,
    "pipeline": measure_pipeline,
    "evaluation": measure_evaluation,
    "slices": measure_slices,
    "quantizer": measure_quantizer,
    "codes": measure_codes,
}
"""Name -> function that takes a `Setting` and yields rows."""
