"""Speed and memory of the archive and of stage one; each measurement gives rows of one table."""

import contextlib
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import keras
import numpy as np
from benchmarks.harness import (
    PROCESS_STATUS,
    PeakMemory,
    Row,
    Setting,
    empty_memory,
    gpu_memory,
    interleaved_medians,
    timed,
    training_rate,
)
from benchmarks.one_batch import OneBatch
from benchmarks.roofline import OPERATIONS_PER_WEIGHT, training_rows
from benchmarks.tutorial_vqvae import PlainVQVAE, one_hot_quantize
from keras import ops

from brainslices.data.archive import SliceArchive
from brainslices.data.batches import SliceBatches
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.evaluation.image_metrics import score_slices
from brainslices.evaluation.ssim import ssim, ssim_foreground
from brainslices.training.loop import enable_determinism
from brainslices.training.optimizer import compile_model
from brainslices.training.precision import resolve_precision, trainable_policies
from tuning.workers import call
from vqvae.config import PRESETS
from vqvae.quantizer import nearest_codes
from vqvae.training import build_model

__all__ = ["MEASUREMENTS"]

LATENTS, LATENT_WIDTH, CODES = 1_000_000, 64, 4096
QUICK_LATENTS, QUICK_CODES, QUICK_BATCH = 20_000, 512, 8
# The plain quantiser gets this share of the latents: all of them would take 16 GB a table.
PLAIN_SHARE = 10
# Growth is measured at these shares of the training slices, and with these codebooks.
SHARES = (8, 4, 2, 1)
GROWN_CODES, GROWN_LATENTS = (64, 256, 1024, 4096), 100_000
SCORED = 64
PLAIN = "tutorial form, whole float32 pictures in memory"


def measure_start(setting: Setting) -> Iterator[Row]:
    """Seconds until each command has answered `--help`."""
    commands = sorted(setting.scripts.glob("*.py"))
    sides = {path.name: partial(timed, _show_help, path) for path in commands}
    for name, (seconds,) in interleaved_medians(sides, setting.rounds).items():
        yield Row(f"{name} --help", "s", seconds, at_most=1.0)


def _show_help(path):
    subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True)


def measure_archive(setting: Setting) -> Iterator[Row]:
    """Seconds to make an archive of pictures, and to open one."""
    if setting.pictures:
        made = setting.workspace / "archive"
        wanted = SourceConfig(str(setting.pictures), made, overwrite=True)
        (seconds,) = interleaved_medians(
            {"make": partial(timed, make_archive, wanted)}, setting.few_rounds
        )["make"]
        note = f"{len(SliceArchive.open(made).index)} pictures"
        yield Row("make the archive", "s", seconds, at_most=30.0, note=note)
    (seconds,) = interleaved_medians(
        {"open": partial(timed, SliceArchive.open, setting.archive)}, setting.rounds
    )["open"]
    note = f"{len(SliceArchive.open(setting.archive).index)} slices"
    yield Row("open the archive", "s", seconds, at_most=0.2, note=note)


def measure_memory(setting: Setting) -> Iterator[Row]:
    """Peak memory of training over that of an empty TensorFlow, each in a process of its own."""
    if not PROCESS_STATUS.exists():
        return
    empty = call(empty_memory)
    plain = _added(call(_plain_memory, setting), empty)
    for name, policy in itertools.product(PRESETS, trainable_policies()):
        ours = _added(call(_training_memory, setting, name, policy), empty)
        peer = {"peer": plain["resident"], "against": PLAIN} if name == "seed" else {}
        row = f"memory, train {name}, {policy}"
        yield Row(row, "GB", ours["resident"], at_most=1.0, note="resident", **peer)
        yield Row(f"{row}: anonymous", "GB", ours["anonymous"], note="the process's own")
        note = "pages of archive and libraries, which the kernel takes back at need"
        yield Row(f"{row}: file-backed", "GB", ours["file_backed"], note=note)
        if ours["gpu"]:
            yield Row(f"{row}: GPU", "GB", ours["gpu"], note="of the card's own")


def _added(peak, empty):
    return {part: peak[part] - empty.get(part, 0.0) for part in peak}


def _training_memory(setting, name, policy):
    enable_determinism()
    with PeakMemory() as peak:
        model, batches = _ours(setting, name, policy)
        # A whole epoch, so that every training slice is read.
        steps = 2 if setting.quick else batches.steps_per_epoch
        model.fit(batches, steps_per_epoch=steps, verbose=0)
    return {**peak.parts, "gpu": gpu_memory()}


def _plain_memory(setting):
    with PeakMemory() as peak:
        model, images, batch_size = _plain(setting)
        model.fit(images, batch_size=batch_size, steps_per_epoch=2, verbose=0)
    return peak.parts


def measure_seed(setting: Setting) -> Iterator[Row]:
    """Training of the `seed` preset, side by side with the tutorial form of the same network."""
    auto, reason = resolve_precision("auto", max(PRESETS["seed"].model.channels))
    sides = {"plain": partial(call, _tutorial_rate, setting)}
    for label, policy in (("float32", "float32"), ("auto", auto)):
        sides[label] = partial(call, _rate, setting, policy, False, "seed")
    rates = {name: rate for name, (rate,) in interleaved_medians(sides, setting.few_rounds).items()}
    peer = {"peer": rates["plain"], "against": PLAIN, "at_least": 1.5}
    yield Row("train seed, float32", "slices/s", rates["float32"], **peer)
    yield Row("train seed, auto", "slices/s", rates["auto"], **peer, note=f"{auto}: {reason}")


def measure_default(setting: Setting) -> Iterator[Row]:
    """Training of the `default` preset in each precision, beside plain `fit` on one batch."""
    model, batches = _ours(setting, "default", "float32")
    rows = list(training_rows("train default", setting, _rate, _operations(model)))
    yield from rows
    steps = 2 if setting.quick else 20
    sides = {"input": partial(_input_rate, batches, steps)}
    (rate,) = interleaved_medians(sides, setting.few_rounds)["input"]
    fastest = max(row.ours for row in rows if row.unit == "slices/s")
    peer = {"peer": fastest, "against": "training, the fastest precision"}
    yield Row("input path alone", "slices/s", rate, **peer)


def _operations(model):
    """Floating-point operations of training on a slice: those of the convolutions."""
    weights = 0
    for layer in (*model.encoder.layers, *model.decoder.layers):
        if isinstance(layer, keras.layers.Conv2DTranspose):
            weights += math.prod(layer.kernel.shape) * math.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            weights += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    return OPERATIONS_PER_WEIGHT * weights


def measure_evaluation(setting: Setting) -> Iterator[Row]:
    """Scores and reconstructions, a batch at a time as in training and `reconstruct.py`."""
    archive = SliceArchive.open(setting.archive)
    images = archive.load(archive.indices("validate")[: QUICK_BATCH if setting.quick else SCORED])
    altered = np.clip(images * 0.9 + 0.02, 0, 1).astype("float32")
    model, _ = _ours(setting, "default", "float32")
    score = _scorer(images.shape[1:])
    sides = {
        "ours": lambda: score.predict_on_batch([images, altered]),
        "scikit-image": lambda: score_slices(images[..., 0], altered[..., 0]),
        "reconstruct": lambda: model.predict_on_batch(images)["reconstruction"],
        "train": lambda: float(model.train_on_batch(images, return_dict=True)["loss"]),
    }
    for side in sides.values():
        side()  # compiled before the clock starts
    timers = {name: partial(timed, side) for name, side in sides.items()}
    rates = {
        name: len(images) / seconds
        for name, (seconds,) in interleaved_medians(timers, setting.rounds).items()
    }
    peer = {"peer": rates["scikit-image"], "against": "scikit-image, a slice at a time"}
    yield Row("score with ssim and ssim_foreground", "slices/s", rates["ours"], **peer)
    peer = {"peer": rates["train"], "against": "a training step on them"}
    yield Row("reconstruct, default", "slices/s", rates["reconstruct"], **peer)


def _scorer(shape):
    pair = keras.Input(shape), keras.Input(shape)
    scores = keras.layers.Lambda(
        lambda both: ops.stack([ssim(*both), ssim_foreground(*both)], axis=-1), output_shape=(2,)
    )
    return keras.Model(pair, scores(pair))


def measure_slices(setting: Setting) -> Iterator[Row]:
    """Time and memory of training `seed` as the archive grows, each in a process of its own."""
    if not PROCESS_STATUS.exists():
        return
    whole = len(SliceArchive.open(setting.archive).indices("train"))
    first = None
    for share in SHARES[-1:] if setting.quick else SHARES:
        count = whole // share
        rate, memory = call(_epoch, setting, count)
        growth = {"grows": "training slices", "size": count}
        name = f"train seed on {count} slices"
        yield Row(f"{name}, a slice", "s", 1 / rate, curve="Train, for each slice", **growth)
        peer = {} if first is None else {"peer": first, "against": "the fewest slices"}
        yield Row(
            f"memory, {name}",
            "GB",
            memory,
            note="the process's own",
            curve="Train",
            **peer,
            **growth,
        )
        first = first or memory


def _epoch(setting, count):
    """Slices per second of a whole epoch on some slices, and the GB of its own it adds."""
    enable_determinism()
    with PeakMemory() as peak:
        before = peak.anonymous
        model, batches = _ours(setting, "seed", "float32", count)
        model.fit(OneBatch(batches), steps_per_epoch=1, verbose=0)  # compiled
        seconds = timed(partial(model.fit, batches, verbose=0))
    return len(batches) * batches.batch_size / seconds, peak.anonymous - before


def measure_codes(setting: Setting) -> Iterator[Row]:
    """Time and memory of the nearest-code search as the codebook grows."""
    count = QUICK_LATENTS if setting.quick else GROWN_LATENTS
    first = None
    for codes in GROWN_CODES[:1] if setting.quick else GROWN_CODES:
        seconds, memory = call(_quantize, count, codes, False)
        growth = {"curve": "Quantise", "grows": "codes of the codebook", "size": codes}
        name = f"quantise {count:,} latents, {codes} codes"
        times = codes // GROWN_CODES[0]
        against = f"{GROWN_CODES[0]} codes, times {times}"
        peer = {} if first is None else {"peer": first * times, "against": against}
        yield Row(name, "s", seconds, **peer, **growth)
        if PROCESS_STATUS.exists():
            yield Row(f"memory, {name}", "GB", memory, **growth)
        first = first or seconds


def _rate(setting, policy, plain=False, name="default"):
    """Slices per second of training a preset as `train` does, or by plain `fit` on one batch.

    In a process of its own: op determinism, which a plain `fit` does without, is a process's.
    """
    model, batches = _ours(setting, name, policy)
    if plain:
        model.compile(keras.optimizers.Adam())
        return training_rate(setting, model, OneBatch(batches))
    enable_determinism()
    return training_rate(setting, model, batches)


def _tutorial_rate(setting):
    model, images, batch_size = _plain(setting)
    return training_rate(setting, model, images, batch_size)


def _input_rate(batches, steps):
    return batches.batch_size * steps / timed(lambda: [batches[step] for step in range(steps)])


def _ours(setting, name, policy, count=None):
    """A preset as `train` sets it up, for some slices or all: model, compiled, and its batches."""
    archive = SliceArchive.open(setting.archive)
    rows, preset = archive.indices("train")[:count], PRESETS[name]
    batch_size = QUICK_BATCH if setting.quick else preset.training.batch_size
    with _dtype_policy(policy):
        model = build_model(archive, rows, preset.model, preset.training.seed)
    batches = SliceBatches(archive, rows, batch_size, preset.training.seed)
    compile_model(model, preset.training, batches.steps_per_epoch)
    return model, batches


def _plain(setting):
    """The tutorial form: model, compiled, all its pictures in memory, and its batch size."""
    archive = SliceArchive.open(setting.archive)
    images = archive.load(archive.indices("train"))
    model = PlainVQVAE(float(images.var()))
    model.compile(keras.optimizers.Adam())
    batch_size = QUICK_BATCH if setting.quick else PRESETS["seed"].training.batch_size
    return model, images, min(batch_size, len(images))


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def measure_quantizer(setting: Setting) -> Iterator[Row]:
    """Seconds and extra memory to quantise many latents, each time in a new process."""
    count, codes = (QUICK_LATENTS, QUICK_CODES) if setting.quick else (LATENTS, CODES)
    share = count // PLAIN_SHARE
    sides = {
        "ours": partial(call, _quantize, count, codes, False),
        "plain": partial(call, _quantize, share, codes, True),
    }
    medians = interleaved_medians(sides, setting.few_rounds)
    scaled = [PLAIN_SHARE * figure for figure in medians["plain"]]
    against = f"one-hot form on {share:,} latents, times {PLAIN_SHARE}"
    name = f"quantise {count:,} x {LATENT_WIDTH} latents, {codes:,} codes"
    seconds, memory = medians["ours"]
    yield Row(name, "s", seconds, peer=scaled[0], against=against)
    if PROCESS_STATUS.exists():
        limit = {"at_most": 1.0, "note": "with the quantised latents, without the given ones"}
        yield Row(f"memory, {name}", "GB", memory, peer=scaled[1], against=against, **limit)


def _quantize(count, num_embeddings, plain):
    """Seconds and extra GB of one quantisation."""
    draw = np.random.default_rng(0).standard_normal
    latents, codebook = (
        ops.convert_to_tensor(draw((rows, LATENT_WIDTH), "float32"))
        for rows in (count, num_embeddings)
    )
    quantize = one_hot_quantize if plain else _search_and_look_up
    layer = keras.layers.Lambda(lambda rows: quantize(rows, codebook), output_shape=(LATENT_WIDTH,))
    # Compiled, as in training: there the search's blocks may run at the same time.
    compiled = keras.Sequential([keras.Input((LATENT_WIDTH,)), layer]).predict_on_batch
    compiled(latents[:2])
    with PeakMemory() as peak:
        seconds = timed(compiled, latents)
    return seconds, peak.resident - peak.before


def _search_and_look_up(latents, codebook):
    return ops.take(codebook, nearest_codes(latents, codebook), axis=0)


MEASUREMENTS = {
    "start": measure_start,
    "archive": measure_archive,
    "memory": measure_memory,
    "seed": measure_seed,
    "default": measure_default,
    "evaluation": measure_evaluation,
    "slices": measure_slices,
    "quantizer": measure_quantizer,
    "codes": measure_codes,
}
"""Name -> function that takes a `Setting` and yields rows."""
