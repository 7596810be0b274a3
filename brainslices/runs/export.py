"""Export of functions of trained models to ONNX files, each compared with its model."""

import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.types import PathLike, Tensor

__all__ = ["Export", "write_exports"]

PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
# The newest operator set that tf2onnx writes; onnxruntime reads it from version 1.14.
OPSET = 18
TOLERANCE = 1e-4
# Share of the codes that may differ: rounding decides between two codes at nearly equal distance.
MAX_DIFFERENT_CODES = 0.01


@dataclasses.dataclass(frozen=True)
class Export:
    """A function of a trained model that becomes an ONNX file.

    Args:
        function: takes one tensor for each input, in order, and returns the output.
        inputs: name -> example, an array of shape (batch, ...); the file takes any batch size.
        output: name of the output, whose first axis is the batch.
    """

    function: Callable[..., Tensor]
    inputs: Mapping[str, np.ndarray]
    output: str


def write_exports(
    folder: PathLike, exports: Mapping[str, Export], metadata: Mapping[str, str]
) -> dict[str, dict[str, tuple]]:
    """Write ONNX files and compare each with its model in ONNX Runtime.

    Args:
        folder: new or empty folder, or an earlier export to replace.
        exports: file name -> what it computes.
        metadata: stored in every file.

    Returns:
        File name -> name of each input and the output -> its shape, without the batch.

    Raises:
        InputError: if the folder holds unexpected files, packages are missing or the backend is
            not TensorFlow, through which the functions are converted.
        RuntimeError: if an exported file computes something other than its model.
    """
    _check_packages()
    folder = Path(folder).resolve()
    check_output_dir(folder, [*exports], "export", marker=next(iter(exports)))
    shapes = {}
    with atomic_folder(folder) as temporary:
        for name, export in exports.items():
            expected = np.asarray(export.function(*export.inputs.values()))
            content = _convert(export, expected.shape, metadata)
            _check_equal(name, _run(content, export.inputs), expected)
            (temporary / name).write_bytes(content)
            arrays = {**export.inputs, export.output: expected}
            shapes[name] = {key: value.shape[1:] for key, value in arrays.items()}
    return shapes


def _check_packages() -> None:
    import keras

    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"Missing packages: {', '.join(missing)}. In the clone, run: pip install "
            '--editable ".[export]".'
        )
    if keras.config.backend() != "tensorflow":
        raise InputError(
            "Models are converted through TensorFlow, whichever backend trained them. Received: "
            f"KERAS_BACKEND={keras.config.backend()}. Set KERAS_BACKEND=tensorflow."
        )


def _convert(export: Export, output_shape: tuple, metadata: Mapping[str, str]) -> bytes:
    import tensorflow as tf

    with warnings.catch_warnings(action="ignore"):
        import onnx
        import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    signature = [
        tf.TensorSpec((None, *array.shape[1:]), array.dtype, name)
        for name, array in export.inputs.items()
    ]
    function = tf.function(lambda *tensors: {export.output: export.function(*tensors)})
    model, _ = tf2onnx.convert.from_function(
        function,
        signature,
        opset=OPSET,
        custom_op_handlers={"ResizeBilinear": (_convert_resize, [])},
    )
    shapes = [array.shape for array in export.inputs.values()] + [output_shape]
    for value, shape in zip([*model.graph.input, *model.graph.output], shapes, strict=True):
        batch, *sides = value.type.tensor_type.shape.dim
        batch.dim_param = "batch"
        for side, size in zip(sides, shape[1:], strict=True):
            side.dim_value = size
    onnx.helper.set_model_props(model, dict(metadata))
    return model.SerializeToString()


def _convert_resize(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Convert a bilinear resize by its target size.

    tf2onnx writes scales instead, with which 176 pixels x 208 / 176 become 207.
    """
    rows, cols = node.inputs[1].get_tensor_value()
    sizes = ctx.make_const(f"{name}_sizes", np.array([rows, cols], "int64"))
    result = {"outputs": node.output, "shapes": node.output_shapes, "dtypes": node.output_dtypes}
    inputs = [node.input[0], "", "", sizes.output[0]]
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "axes": [1, 2]}
    ctx.remove_node(name)
    ctx.make_node("Resize", inputs, options, name=name, **result)


def _run(content: bytes, inputs: Mapping[str, np.ndarray]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


def _check_equal(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    different = ~np.isclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    allowed = MAX_DIFFERENT_CODES if expected.dtype.kind == "i" else 0.0
    if different.mean() > allowed:
        raise RuntimeError(f"{name} differs from its model in {different.mean():.1%} of the values")
