"""Read and write JSON files."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from brainslices.config import Model, Training, from_dict
from brainslices.errors import InputError
from brainslices.reading import reading
from brainslices.runs.atomic import atomic_path
from brainslices.schema import OBJECT, Rule, check_fields
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


def read_json(
    path: PathLike,
    rules: Mapping[str, Rule] | None = None,
    optional: Collection[str] = (),
    hint: str = "Restore it.",
) -> dict[str, Any]:
    """Read a JSON object, and check the fields that have rules.

    Args:
        path: the file.
        rules: field -> rule of `brainslices.schema`.
        optional: fields that may be missing.
        hint: the repair, for the messages.

    Returns:
        All fields, also those without a rule.

    Raises:
        CorruptFileError: if the file is not JSON or no object, or a field is missing or breaks its
            rule.
        InputError: if the file is missing or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no file {path}. Give the path of a JSON file that exists.")
    with reading(path, "JSON file", hint):
        value = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
        check_fields(value, rules or {}, optional)
    return value


def _refuse_constant(name):
    raise ValueError(f"{name} is not valid JSON")


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
    values = read_json(path, {"model": OBJECT, "training": OBJECT})
    model = from_dict(model_type, values["model"], Path(path))
    return model, from_dict(training_type, values["training"], Path(path))
