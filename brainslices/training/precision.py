"""The dtype policy of a training and the reason for it."""

from pathlib import Path

import keras

from brainslices.distributed.devices import list_gpus
from brainslices.errors import InputError

__all__ = ["resolve_precision", "trainable_policies"]

# Layers narrower than this are not faster in bfloat16 on a CPU.
MIN_BFLOAT16_WIDTH = 64
# Tensor cores compute in float16 from compute capability 7 (Volta), in bfloat16 from 8 (Ampere);
# older GPUs have none, and float16 may even be slower there.
MIN_CAPABILITY = {"mixed_bfloat16": (8, 0), "mixed_float16": (7, 0), "float32": (0, 0)}


def resolve_precision(precision: str, width: int) -> tuple[str, str]:
    """Choose the Keras dtype policy.

    Args:
        precision: "auto", "float32", "mixed_bfloat16" or "mixed_float16".
        width: channels of the model's widest layers.

    Returns:
        The name of the policy and the reason for it.

    Raises:
        InputError: if the device cannot compute in the requested precision.
    """
    if precision != "auto":
        if precision != "float32":
            _check_supported(precision)
        return precision, "as requested"
    capability = _gpu_capability()
    if capability == (0, 0):
        return "float32", "GPU of unknown compute capability"
    if capability is not None:
        policy = next(name for name, least in MIN_CAPABILITY.items() if capability >= least)
        return policy, f"GPU of compute capability {capability[0]}.{capability[1]}"
    if not _cpu_has_bfloat16():
        return "float32", "CPU without bfloat16 instructions"
    if width < MIN_BFLOAT16_WIDTH:
        return "float32", f"layers of {width} channels, too narrow to gain from bfloat16 on a CPU"
    return "mixed_bfloat16", f"CPU with bfloat16 instructions, layers of {width} channels"


def trainable_policies() -> list[str]:
    """Return the dtype policies in which this device trains at a useful speed."""
    policies = ["float32", "mixed_bfloat16"]
    return [*policies, "mixed_float16"] if list_gpus() else policies  # no CPU computes in float16


def _gpu_capability() -> tuple[int, int] | None:
    """Return the first GPU's compute capability, (0, 0) if unknown; None without a GPU."""
    if not list_gpus():
        return None
    if keras.backend.backend() == "jax":
        import jax

        text = str(getattr(jax.devices("gpu")[0], "compute_capability", ""))
        major, _, minor = text.partition(".")
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
    import tensorflow as tf

    device = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))


def _cpu_has_bfloat16():
    """Whether the CPU has AVX512-BF16 or AMX; other CPUs emulate bfloat16, slowly."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _check_supported(policy):
    dtype = keras.dtype_policies.get(policy).compute_dtype
    try:
        images, kernel = keras.ops.ones((1, 4, 4, 1), dtype), keras.ops.ones((3, 3, 1, 1), dtype)
        keras.ops.convert_to_numpy(keras.ops.conv(images, kernel, data_format="channels_last"))
    except Exception as error:  # each backend raises its own type
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"`precision` must be one that {keras.distribution.list_devices()[0]} supports "
            f"({reason}). Received: precision={policy!r}. Use --precision auto or float32."
        ) from error
