"""Speed and memory of the archive and of stage one; each measurement gives rows of one table."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import keras
import numpy as np
from keras import ops

from brainslices.archive import SliceArchive
from brainslices.batches import SliceBatches
from brainslices.precision import resolve_precision
from brainslices.processes import call
from brainslices.sources import SourceConfig, make_archive
from brainslices.timing import (
    PROCESS_STATUS,
    PeakMemory,
    Row,
    Setting,
    alternate,
    empty_memory,
    timed,
    training_rate,
)
from brainslices.training import compile_model
from vqvae.config import PRESETS
from vqvae.plain import PlainVQVAE, one_hot_quantize
from vqvae.quantizer import nearest_codes
from vqvae.training import build_model

__all__ = ["MEASUREMENTS"]

LATENTS, LATENT_WIDTH, CODES = 1_000_000, 64, 4096
QUICK_LATENTS, QUICK_CODES, QUICK_BATCH = 20_000, 512, 8
# The plain quantiser gets this share of the latents: all of them would take 16 GB a table.
PLAIN_SHARE = 10
PLAIN = "tutorial form, whole float32 pictures in memory"


def measure_start(setting: Setting) -> Iterator[Row]:
    """Seconds until each command has answered `--help`."""
    commands = sorted(setting.scripts.glob("*.py"))
    sides = {path.name: partial(timed, _show_help, path) for path in commands}
    for name, (seconds,) in alternate(sides, setting.rounds).items():
        yield Row(f"{name} --help", "s", seconds, at_most=1.0)


def _show_help(path):
    subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True)


def measure_archive(setting: Setting) -> Iterator[Row]:
    """Seconds to make an archive of pictures, and to open one."""
    if setting.pictures:
        made = setting.workspace / "archive"
        wanted = SourceConfig(str(setting.pictures), made, overwrite=True)
        (seconds,) = alternate(
            {"make": partial(timed, make_archive, wanted)}, min(3, setting.rounds)
        )["make"]
        note = f"{len(SliceArchive.open(made).index)} pictures"
        yield Row("make the archive", "s", seconds, at_most=30.0, note=note)
    (seconds,) = alternate(
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
    for name in PRESETS:
        ours = _added(call(_training_memory, setting, name), empty)
        peer = {"peer": plain["resident"], "against": PLAIN} if name == "seed" else {}
        row = f"memory, train {name}"
        yield Row(row, "GB", ours["resident"], at_most=1.0, note="resident", **peer)
        yield Row(f"{row}: anonymous", "GB", ours["anonymous"], note="the process's own")
        note = "pages of archive and libraries, which the kernel takes back at need"
        yield Row(f"{row}: file-backed", "GB", ours["file_backed"], note=note)


def _added(peak, empty):
    return {part: peak[part] - empty[part] for part in peak}


def _training_memory(setting, name):
    with PeakMemory() as peak:
        model, batches = _ours(setting, name, "float32")
        # A whole epoch, so that every training slice is read.
        steps = 2 if setting.quick else batches.steps_per_epoch
        model.fit(batches, steps_per_epoch=steps, verbose=0)
    return peak.parts


def _plain_memory(setting):
    with PeakMemory() as peak:
        model, images, batch_size = _plain(setting)
        model.fit(images, batch_size=batch_size, steps_per_epoch=2, verbose=0)
    return peak.parts


def measure_seed(setting: Setting) -> Iterator[Row]:
    """Training of the `seed` preset, side by side with the tutorial form of the same network."""
    auto, reason = resolve_precision("auto", max(PRESETS["seed"].model.channels))
    plain, images, batch_size = _plain(setting)
    sides = {"plain": partial(_rate, setting, plain, images, batch_size)}
    for label, policy in (("float32", "float32"), ("auto", auto)):
        sides[label] = partial(_rate, setting, *_ours(setting, "seed", policy))
    rates = {name: rate for name, (rate,) in alternate(sides, setting.rounds).items()}
    peer = {"peer": rates["plain"], "against": PLAIN, "at_least": 1.5}
    yield Row("train seed, float32", "slices/s", rates["float32"], **peer)
    yield Row("train seed, auto", "slices/s", rates["auto"], **peer, note=f"{auto}: {reason}")


def measure_default(setting: Setting) -> Iterator[Row]:
    """Training of the `default` preset in each precision, and its input path alone."""
    sides = {}
    for policy in ("float32", "mixed_bfloat16"):
        model, batches = _ours(setting, "default", policy)
        sides[policy] = partial(_rate, setting, model, batches)
    sides["input"] = partial(_input_rate, batches, 2 if setting.quick else 20)
    rates = {name: rate for name, (rate,) in alternate(sides, setting.rounds).items()}
    yield Row("train default, float32", "slices/s", rates["float32"])
    bfloat16 = rates["mixed_bfloat16"]
    peer = {"peer": rates["float32"], "against": "float32"}
    yield Row("train default, mixed_bfloat16", "slices/s", bfloat16, **peer)
    peer = {"peer": max(rates["float32"], bfloat16), "against": "training, the faster precision"}
    yield Row("input path alone", "slices/s", rates["input"], **peer)


def _rate(setting, model, data, batch_size=None):
    warmup, steps = (1, 2) if setting.quick else (2, 8)
    return training_rate(model, data, batch_size, warmup, steps)


def _input_rate(batches, steps):
    return batches.batch_size * steps / timed(lambda: [batches[step] for step in range(steps)])


def _ours(setting, name, policy):
    """A preset as `train` sets it up: model, compiled, and its batches."""
    archive = SliceArchive.open(setting.archive)
    rows, preset = archive.rows_of("train"), PRESETS[name]
    batch_size = QUICK_BATCH if setting.quick else preset.training.batch_size
    with _dtype_policy(policy):
        model = build_model(archive, rows, preset.model, preset.training.seed)
    batches = SliceBatches(archive, rows, batch_size, preset.training.seed)
    compile_model(model, preset.training, batches.steps_per_epoch)
    return model, batches


def _plain(setting):
    """The tutorial form: model, compiled, all its pictures in memory, and its batch size."""
    archive = SliceArchive.open(setting.archive)
    images = archive.load(archive.rows_of("train"))
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
    medians = alternate(sides, min(3, setting.rounds))
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
    "quantizer": measure_quantizer,
}
"""Name -> function that takes a `Setting` and yields rows."""
