"""Read and write JSON objects."""

import json
from pathlib import Path

from brainslices.config import from_dict
from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path

__all__ = ["load_config", "read_json", "write_json"]


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. Not-a-number becomes null, as JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing, is not JSON, or holds something else than an object.
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


def load_config(path: Path, *kinds: type) -> tuple:
    """Read the objects `model` and `training` of a JSON file, such as a run's config.json.

    Args:
        path: the file.
        *kinds: the dataclasses of `model` and of `training`.

    Raises:
        InputError: if the file is missing, or has an unknown, missing or wrong value.
    """
    values = read_json(path)
    for part in ("model", "training"):
        if not isinstance(values.get(part), dict):
            raise InputError(f"{path} must hold an object `{part}`. Found: {[*values]}.")
    parts = zip(("model", "training"), kinds, strict=True)
    return tuple(from_dict(kind, values[part], path) for part, kind in parts)
