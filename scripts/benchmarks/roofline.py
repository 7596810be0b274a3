"""What the machine can do at most, which a training's arithmetic is set beside."""

from collections.abc import Callable, Iterator
from functools import partial

import keras
import numpy as np
from benchmarks.harness import GIGABYTE, Row, Setting, interleaved_medians, timed
from keras import ops

from brainslices.distributed.devices import gpus
from brainslices.training.precision import trainable_policies
from tuning.workers import call

__all__ = ["MEASUREMENTS", "OPERATIONS_PER_WEIGHT", "matrix_products", "training_rows"]

TERA = 10**12
# Training multiplies and adds with each weight in the forward pass, for the gradient of the layer's
# input, and for the weight's own.
OPERATIONS_PER_WEIGHT = 3 * 2
# Sides of the matrices: large enough to keep the device busy, small enough to take little time.
SIDE, GPU_SIDE, QUICK_SIDE = 2048, 8192, 256
PRODUCTS, GPU_PRODUCTS = 8, 100
COPIED, QUICK_COPIED = GIGABYTE, 10**7


def matrix_products(policy: str, quick: bool = False) -> Callable[[], float]:
    """Products of large square matrices, the most that a network's layers can reach.

    Args:
        policy: name of a Keras dtype policy, in whose compute dtype they are.
        quick: measure too little for a stable figure.

    Returns:
        Function that measures their TFLOP/s once.
    """
    side = QUICK_SIDE if quick else GPU_SIDE if gpus() else SIDE
    count = GPU_PRODUCTS if gpus() else PRODUCTS
    # On the device before the clock starts.
    matrix = ops.full((1, side, side), 1 / side, "float32")

    def multiply(given):
        left = right = ops.cast(given, keras.DTypePolicy(policy).compute_dtype)
        for _ in range(count):  # of ones over the side: the product is the matrix again
            left = ops.matmul(left, right)
        return ops.sum(ops.cast(left, "float32"), axis=(1, 2))

    layer = keras.layers.Lambda(multiply, output_shape=(), dtype="float32")
    compute = keras.Sequential([keras.Input((side, side)), layer]).predict_on_batch
    compute(matrix)  # compiled before the clock starts
    return lambda: count * 2 * side**3 / timed(compute, matrix) / TERA


def _copy_rate(quick):
    """GB/s of a copy in memory, what is read and what is written both counted."""
    source = np.ones(QUICK_COPIED if quick else COPIED, "uint8")
    target = np.zeros_like(source)
    return 2 * source.nbytes / timed(np.copyto, target, source) / GIGABYTE


def measure_machine(setting: Setting) -> Iterator[Row]:
    """The machine's matrix products in each precision, and its memory."""
    policies = trainable_policies()
    sides = {policy: matrix_products(policy, setting.quick) for policy in policies}
    sides["copy"] = partial(_copy_rate, setting.quick)
    rates = {name: rate for name, (rate,) in interleaved_medians(sides, setting.rounds).items()}
    note = "in TensorFloat-32 where TensorFlow has a GPU for it" if gpus() else ""
    yield Row("products of matrices, float32", "TFLOP/s", rates["float32"], note=note)
    for policy in policies[1:]:
        name = f"products of matrices, {keras.DTypePolicy(policy).compute_dtype}"
        yield Row(name, "TFLOP/s", rates[policy], peer=rates["float32"], against="float32")
    yield Row("copy in the host's memory", "GB/s", rates["copy"], note="read and written")


def training_rows(
    name: str, setting: Setting, rate: Callable[..., float], operations: float
) -> Iterator[Row]:
    """A training in each precision: beside a plain `fit`, and beside the machine's products.

    Args:
        name: what is trained.
        setting: what may be used.
        rate: function of a module that takes the setting, a dtype policy, and whether to train by
            plain `fit` on one batch; it returns slices per second. Called in a process of its own.
        operations: floating-point operations of training on a slice.
    """
    policies, sides = trainable_policies(), {}
    for policy in policies:
        sides[policy] = partial(call, rate, setting, policy, False)
        sides[f"plain {policy}"] = partial(call, rate, setting, policy, True)
        sides[f"peak {policy}"] = matrix_products(policy, setting.quick)
    rates = {
        side: found for side, (found,) in interleaved_medians(sides, setting.few_rounds).items()
    }
    for policy in policies:
        yield Row(
            f"{name}, {policy}",
            "slices/s",
            rates[policy],
            peer=rates[f"plain {policy}"],
            against="plain `fit`, one batch in memory",
            at_least=0.95,
            note="" if policy == "float32" else f"{rates[policy] / rates['float32']:.2f}x float32",
        )
        yield Row(
            f"{name}, {policy}: arithmetic",
            "TFLOP/s",
            rates[policy] * operations / TERA,
            peer=rates[f"peak {policy}"],
            against="products of large matrices",
            note=f"{operations / GIGABYTE:.2f} GFLOP a slice",
        )


MEASUREMENTS = {"machine": measure_machine}
"""Name -> function that takes a `Setting` and yields rows."""
