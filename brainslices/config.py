"""Configurations: frozen dataclasses whose fields are command-line flags and JSON keys."""

import dataclasses
import difflib
import math
import reprlib
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from brainslices.errors import InputError

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["PRECISIONS", "Precision", "Preset", "TrainingConfig", "check_field", "from_dict"]

Optimizer = Literal["adam", "muon"]
Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
PRECISIONS = typing.get_args(Precision)

Config = TypeVar("Config", bound="DataclassInstance")
Model = TypeVar("Model", bound="DataclassInstance")
Training = TypeVar("Training", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training of either stage; each stage adds its own fields."""

    epochs: int
    """Passes over the training slices."""
    batch_size: int
    """Slices per training step."""
    learning_rate: float
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"]
    """Learning rate schedule: constant, or cosine decay to zero at the last step."""
    warmup_steps: int
    """Steps of linear warmup from zero (cosine schedule)."""
    beta_2: float
    """Adam's decay rate of the second moment."""
    gradient_clip: float
    """Maximum global norm of the gradients; 0 disables clipping."""
    optimizer: Optimizer = "adam"
    """Optimizer of the kernels: adam or muon; Adam trains all other weights."""
    average: float = 0.0
    """Decay per step of a moving average (EMA) of the weights, which is validated and saved; 0
    validates and saves the weights themselves."""
    patience: int = 0
    """Epochs without a better validation score before early stopping; 0 disables it."""
    precision: Precision = "auto"
    """Precision of the layers; the quantiser, losses and scores stay in float32."""
    seed: int = 0
    """Seed of the initial weights, the data order and all other random numbers."""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_field(self, name, lambda value: 1 <= value < 2**31, "from 1 to 2**31 - 1")
        check_field(self, "learning_rate", lambda value: 0 < value < math.inf, "a positive number")
        for name in ("warmup_steps", "patience"):
            check_field(self, name, lambda value: 0 <= value < 2**31, "from 0 to 2**31 - 1")
        check_field(self, "gradient_clip", lambda value: 0 <= value < math.inf, "at least 0")
        check_field(self, "average", lambda value: 0 <= value < 1, "at least 0 and under 1")
        check_field(self, "beta_2", lambda value: 0 < value < 1, "between 0 and 1")
        check_field(self, "schedule", ("constant", "cosine").__contains__, "'constant' or 'cosine'")
        if self.schedule == "constant":
            check_field(
                self, "warmup_steps", lambda value: value == 0, "0 with schedule='constant'"
            )
        optimizers = typing.get_args(Optimizer)
        check_field(self, "optimizer", optimizers.__contains__, "'adam' or 'muon'")
        check_field(self, "precision", PRECISIONS.__contains__, "one of " + ", ".join(PRECISIONS))
        check_field(self, "seed", lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1")


@dataclasses.dataclass(frozen=True)
class Preset(Generic[Model, Training]):
    """A named configuration of a model and of its training."""

    model: Model
    training: Training


def check_field(
    config: object, name: str, predicate: Callable[[Any], object], expectation: str
) -> None:
    """Check one field of a configuration.

    Args:
        config: the dataclass instance.
        name: the field.
        predicate: returns whether the field's value is valid.
        expectation: what the value must be, for the message: "at least 1".

    Raises:
        InputError: if the value is not valid.
    """
    value = getattr(config, name)
    if not predicate(value):
        raise InputError(f"`{name}` must be {expectation}. Received: {name}={value!r}.")


def from_dict(config_type: type[Config], values: dict[str, Any], source: Path | str) -> Config:
    """Build a configuration dataclass from the object of a JSON file.

    Args:
        config_type: the dataclass.
        values: field name -> value; lists become tuples.
        source: the file, for the messages.

    Raises:
        InputError: if a key is unknown or missing, or a value has the wrong type or is out of
            range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source} must hold JSON objects. Received: {reprlib.repr(values)}.")
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    for key in values:
        if key not in fields:
            similar = difflib.get_close_matches(key, fields, n=1)
            hint = f"Did you mean `{similar[0]}`?" if similar else f"Known: {', '.join(fields)}."
            raise InputError(f"Unknown key `{key}` in {source}. {hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise InputError(
            f"Missing keys in {source}: {', '.join(missing)}. A run's config.json has all."
        )
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    for name, field_type in typing.get_type_hints(config_type).items():
        if name in arguments and not _has_type(arguments[name], field_type):
            raise InputError(
                f"`{name}` in {source} has the wrong type. "
                f"Received: {name}={reprlib.repr(values[name])}."
            )
    try:
        return config_type(**arguments)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _has_type(value: object, field_type: Any) -> bool:
    """Whether a value read from JSON has a field's type; an integer is accepted as a float."""
    if typing.get_origin(field_type) is Literal:
        return isinstance(value, str)
    if typing.get_origin(field_type) is tuple:
        item_type = typing.get_args(field_type)[0]
        return isinstance(value, tuple) and all(_has_type(item, item_type) for item in value)
    if field_type is float:
        return type(value) is float or type(value) is int and abs(value) <= sys.float_info.max
    return type(value) is field_type
