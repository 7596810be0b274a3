"""Which arithmetic a training uses, and why."""

import time
from pathlib import Path

import keras
import numpy as np

from brainslices.distributed.devices import gpus
from brainslices.errors import InputError

__all__ = ["resolve_precision", "trainable_policies"]

# Pictures and repeats of the probe: a second or two in all.
PROBE_SHAPE = (16, 64, 64, 1)
PROBE_REPEATS = 4
# bfloat16 must win clearly: a probe on a busy machine varies by some percent.
PROBE_GAIN = 1.15


def resolve_precision(precision: str, width: int) -> tuple[str, str]:
    """Choose the Keras dtype policy.

    Args:
        precision: "auto", "float32", "mixed_bfloat16" or "mixed_float16".
        width: channels of the model's layers, as wide as which the probe on a CPU is: narrow
            convolutions gain nothing from bfloat16.

    Returns:
        The name of the policy and the reason for it, in words.

    Raises:
        InputError: if the device cannot compute in the precision that is asked for.
    """
    if precision != "auto":
        if precision != "float32":
            _require_possible(precision, width)
        return precision, "as asked"
    capability = _gpu_capability()
    if capability == (0, 0):
        return "float32", "GPU that tells no compute capability"
    if capability is not None:
        # Tensor cores compute in float16 from compute capability 7 (Volta) on, in bfloat16 from 8
        # (Ampere); cards before have none, and float16 may even be slower there.
        least = {"mixed_bfloat16": (8, 0), "mixed_float16": (7, 0), "float32": (0, 0)}
        policy = next(name for name, version in least.items() if capability >= version)
        return policy, f"GPU of compute capability {capability[0]}.{capability[1]}"
    if not _cpu_has_bfloat16():
        return "float32", "CPU without bfloat16 instructions"
    gain = _probe("float32", width) / _probe("mixed_bfloat16", width)
    policy = "mixed_bfloat16" if gain > PROBE_GAIN else "float32"
    return policy, f"CPU with bfloat16, {gain:.2f}x the speed of float32 in a short probe"


def trainable_policies() -> list[str]:
    """Dtype policies that this device trains in at a speed worth telling."""
    policies = ["float32", "mixed_bfloat16"]
    return [*policies, "mixed_float16"] if gpus() else policies  # no CPU computes in it


def _gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU, (0, 0) if it tells none; None without a GPU."""
    if not gpus():
        return None
    if keras.backend.backend() == "jax":
        import jax

        text = str(getattr(jax.devices("gpu")[0], "compute_capability", ""))
        major, _, minor = text.partition(".")
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
    import tensorflow as tf

    device = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))


def _cpu_has_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def _require_possible(precision, width):
    try:
        _probe(precision, width, repeats=0)
    except Exception as error:  # each backend has its own
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"This device ({keras.distribution.list_devices()[0]}) cannot train in {precision} "
            f"({reason}). Ask for --precision auto or float32."
        ) from error


def _probe(policy: str, width: int, repeats: int = PROBE_REPEATS) -> float:
    """Seconds of a training step of a small network: the best of a few, after one to warm up."""
    layers = keras.layers
    shape = {"padding": "same", "dtype": policy}
    model = keras.Sequential(
        [
            keras.Input(PROBE_SHAPE[1:]),
            layers.Conv2D(width, 3, strides=2, activation="relu", **shape),
            layers.Conv2D(width, 3, strides=2, activation="relu", **shape),
            layers.Conv2DTranspose(width, 3, strides=2, activation="relu", **shape),
            layers.Conv2DTranspose(1, 3, strides=2, **shape),
        ]
    )
    model.compile(optimizer="sgd", loss="mse")
    images = np.zeros(PROBE_SHAPE, "float32")
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.train_on_batch(images, images)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)
