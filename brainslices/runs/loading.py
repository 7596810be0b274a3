"""Load trained models from their runs."""

import dataclasses
import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from brainslices import keras_setup  # noqa: F401  before any layer is built
from brainslices.config import from_dict
from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import REPAIR, Run
from brainslices.types import PathLike

__all__ = ["copy_model", "load_model", "with_policy"]


def load_model(run: PathLike, kind: str, dtype: str | None = None) -> Any:
    """Load the trained model of a run, its best epoch.

    Args:
        run: the run folder.
        kind: "vqvae" or "pixelcnn", also the package whose module `model` registers the model's
            class with Keras; so a caller need not import that package.
        dtype: dtype policy to run the model in; by default the one it was trained in.

    Returns:
        The model, a `keras.Model` whose attribute `config` is its configuration dataclass.

    Raises:
        InputError: if the run has another kind or format, its model is missing or corrupt, or
            `dtype` is no dtype policy of Keras.
    """
    if dtype is not None:
        _check_policy(dtype)
    run = Run(run)
    values, path = run.open_config(kind)["model"], run.trained_model_path()
    importlib.import_module(f"{kind}.model")
    # Before it is read: a training may replace the file at any time.
    model_hash = file_hash(path)
    with reading(path, f"{kind} model of this version", REPAIR):
        # Before anything is built: a corrupt configuration may describe a network of any size.
        config_type, stored = _read_config(path, kind)
        if stored != from_dict(config_type, values, run.config_path):
            raise InputError(
                f"{path} holds another architecture than {run.config_path} describes. Restore the "
                "two together, or train again into a new --run."
            )
        model = keras.saving.load_model(path, compile=False)
        if not model.built:
            raise ValueError("it lacks the shapes of its weights")
    if file_hash(path) != model_hash:
        raise InputError(f"{path} was replaced by a training while it was read. Try again.")
    # Identifies the model to whatever depends on it, as a prior does on its VQ-VAE.
    model.file_hash = model_hash
    return with_policy(model, dtype) if dtype else model


def with_policy(model: keras.Model, dtype: str) -> keras.Model:
    """Return a built model under a dtype policy: itself, or a copy.

    Args:
        model: the model.
        dtype: the dtype policy, such as "float32".
    """
    return model if dtype == model.dtype_policy.name else copy_model(model, dtype=dtype)


def _check_policy(dtype):
    try:
        keras.dtype_policies.get(dtype)
    except (ValueError, TypeError) as error:
        raise InputError(
            "`dtype` must be a dtype policy of Keras, such as float32 or mixed_bfloat16. "
            f"Received: dtype={dtype!r}."
        ) from error


def _read_config(path: Path, kind: str) -> tuple[type, Any]:
    """Read the configuration in a .keras file; return its dataclass and the instance."""
    with zipfile.ZipFile(path) as file:
        stored = json.loads(file.read("config.json"))
    name = stored["registered_name"]
    config_type = getattr(keras.saving.get_registered_object(name), "config_type", None)
    if config_type is None or not name.startswith(f"{kind}>"):
        raise ValueError(f"it holds a {name}")
    fields = {field.name for field in dataclasses.fields(config_type)}
    values = {key: value for key, value in stored["config"].items() if key in fields}
    return config_type, from_dict(config_type, values, path)


def copy_model(model: keras.Model, **changes: Any) -> keras.Model:
    """Copy a built model with its weights, without its optimizer.

    Args:
        model: the model.
        **changes: entries of its Keras configuration that differ in the copy, such as `dtype`.
    """
    copy = type(model).from_config({**model.get_config(), **changes})
    copy.build_from_config(model.get_build_config())
    copy.set_weights(model.get_weights())
    if hasattr(model, "file_hash"):
        copy.file_hash = model.file_hash
    return copy
