"""Read and write JSON files."""

import json
import math
from pathlib import Path
from typing import Any

from brainslices.config import Model, Training, from_dict
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.types import PathLike

__all__ = ["load_config", "read_json", "write_json"]


def write_json(path: PathLike, value: object) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing, is not JSON, or does not hold an object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give the path of a JSON file that exists.")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Restore it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object. Received: {type(value).__name__}.")
    return value


def load_config(
    path: PathLike, model_type: type[Model], training_type: type[Training]
) -> tuple[Model, Training]:
    """Read the objects `model` and `training` of a JSON file, such as a run's config.json.

    Args:
        path: the file.
        model_type: dataclass of `model`.
        training_type: dataclass of `training`.

    Raises:
        InputError: if the file is missing, or has an unknown key, or a missing or invalid value.
    """
    values = read_json(path)
    for name in ("model", "training"):
        if not isinstance(values.get(name), dict):
            raise InputError(f"{path} must hold an object `{name}`. Received keys: {[*values]}.")
    model = from_dict(model_type, values["model"], Path(path))
    return model, from_dict(training_type, values["training"], Path(path))
