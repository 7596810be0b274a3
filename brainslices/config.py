"""Configuration: frozen dataclasses, read from and written to JSON by name."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from brainslices.errors import InputError

__all__ = ["Preset", "TrainingConfig", "check_field", "from_dict"]

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
PRECISIONS = typing.get_args(Precision)

Config = TypeVar("Config")
Model = TypeVar("Model")
Training = TypeVar("Training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model of either stage is trained; each stage adds what only it has."""

    epochs: int
    """Passes over the training slices."""
    batch_size: int
    """Slices in one step."""
    learning_rate: float
    """Adam's highest learning rate."""
    schedule: Literal["constant", "cosine"]
    """Learning rate over the steps: kept, or falling along a cosine to zero at the last."""
    warmup_steps: int
    """Steps over which the learning rate first rises from zero (cosine)."""
    beta_2: float
    """Adam's discount of the squared gradients."""
    gradient_clip: float
    """Largest global norm of the gradients; 0 does not clip."""
    average: float = 0.0
    """Share that an average of the weights keeps in each step; it is what is scored and saved. 0
    scores and saves the weights themselves."""
    patience: int = 0
    """Stop when the validation score has not improved for so many epochs; 0 never does."""
    precision: Precision = "auto"
    """Arithmetic of the layers; the quantiser, the losses and the scores stay float32."""
    seed: int = 0
    """Fixes the initial weights, the order of the data and every draw."""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_field(self, name, lambda value: value >= 1, "at least 1")
        check_field(self, "learning_rate", lambda value: 0 < value < math.inf, "a positive number")
        check_field(self, "warmup_steps", lambda value: value >= 0, "at least 0")
        check_field(self, "gradient_clip", lambda value: 0 <= value < math.inf, "at least 0")
        check_field(self, "average", lambda value: 0 <= value < 1, "at least 0 and under 1")
        check_field(self, "patience", lambda value: value >= 0, "at least 0")
        check_field(self, "beta_2", lambda value: 0 < value < 1, "between 0 and 1")
        check_field(self, "schedule", ("constant", "cosine").__contains__, "'constant' or 'cosine'")
        if self.schedule == "constant":
            check_field(
                self, "warmup_steps", lambda value: value == 0, "0 with schedule='constant'"
            )
        check_field(self, "precision", PRECISIONS.__contains__, "one of " + ", ".join(PRECISIONS))
        check_field(self, "seed", lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1")


@dataclasses.dataclass(frozen=True)
class Preset(Generic[Model, Training]):
    """A configuration that was trained and measured: the model's and the training's dataclass."""

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


def from_dict(kind: type[Config], values: dict, source: Path | str) -> Config:
    """Build a configuration dataclass from what a JSON file holds.

    Args:
        kind: the dataclass.
        values: field name -> value; lists become tuples where the field is one.
        source: where the values came from, for the messages.

    Raises:
        InputError: if a key is unknown (the nearest known one is named) or missing, or a value is
            of another type than its field or out of its range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source} must hold objects of names and values. Received: {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else f" Known: {', '.join(fields)}."
            raise InputError(f"Unknown key `{key}` in {source}.{hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise InputError(
            f"Missing keys in {source}: {', '.join(missing)}. A run's config.json has all."
        )
    frozen = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    for name, wanted in typing.get_type_hints(kind).items():
        if name in frozen and not _is_of(frozen[name], wanted):
            raise InputError(
                f"`{name}` in {source} has the wrong type. Received: {name}={values[name]!r}."
            )
    return kind(**frozen)


def _is_of(value, wanted) -> bool:
    """Whether a value read from JSON is of a field's type; an integer serves as a float."""
    if typing.get_origin(wanted) is Literal:
        return isinstance(value, str)
    if typing.get_origin(wanted) is tuple:
        each = typing.get_args(wanted)[0]
        return isinstance(value, tuple) and all(_is_of(item, each) for item in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is wanted
