"""Search spaces: functions from keras-tuner's hyperparameters to configurations.

A space declares every dimension on `hp` in every call. To write your own, copy one of the functions
below into a file, name it `space`, and pass the file as `--space`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from keras_tuner import HyperParameters
from keras_tuner.engine.hyperparameters import Fixed, Int

from brainslices.errors import InputError
from vqvae.config import DEFAULT, VQVAEConfig, VQVAETraining

__all__ = ["SPACES", "Space", "build_config", "codebook", "declare", "full", "load_space"]

Space = Callable[[HyperParameters], tuple[VQVAEConfig, VQVAETraining]]

CODEBOOK_SIZES = [2**power for power in range(4, 13)]


def codebook(hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """Vary the codebook size, and whether a code covers 4 x 4 or 8 x 8 pixels.

    Args:
        hp: keras-tuner's hyperparameters, on which every call declares the same dimensions.

    Returns:
        Configuration of the model, and of its full training.
    """
    num_embeddings = hp.Choice("num_embeddings", CODEBOOK_SIZES, default=512)
    stages = {4: 2, 8: 3}[hp.Choice("downsampling", [4, 8], default=8)]
    channels = DEFAULT.model.channels[:stages]
    model = replace(DEFAULT.model, num_embeddings=num_embeddings, channels=channels)
    return model, DEFAULT.training


def full(hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """Vary the codebook, the widths, the magnification, the commitment and the learning rate.

    Args:
        hp: as for `codebook`.

    Returns:
        As `codebook`.
    """
    model, training = codebook(hp)
    width = hp.Choice("width", [32, 64, 96], default=64)
    model = replace(
        model,
        embedding_dim=hp.Choice("embedding_dim", [8, 16, 32, 64], default=32),
        magnification=hp.Choice("magnification", [0.8, 1.0, 1.2], default=1.2),
        channels=(width, *[2 * width] * (len(model.channels) - 1)),
        commitment_cost=hp.Float("commitment_cost", 0.05, 1.0, sampling="log", default=0.25),
    )
    default = training.learning_rate
    rate = hp.Float("learning_rate", default / 4, 4 * default, sampling="log", default=default)
    return model, replace(training, learning_rate=rate)


SPACES: dict[str, Space] = {"codebook": codebook, "full": full}


def load_space(name: str) -> Space:
    """Load a space by its name in `SPACES`, or the function `space` of a Python file.

    Raises:
        InputError: if the file does not exist, cannot be run, or has no such function.
    """
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"`space` must be a file that exists. Received: space={name!r}.")
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        SourceFileLoader(path.stem, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run ({type(error).__name__}: {error}).") from error
    if not callable(getattr(module, "space", None)):
        raise InputError(f"{path} has no function `space(hp)`. See tuning/spaces.py for examples.")
    return module.space


def declare(space: Space, fix: Sequence[str] = ()) -> HyperParameters:
    """Declare the dimensions of a space, the fixed ones as `Fixed`.

    Args:
        space: a function such as `codebook`.
        fix: "name=value" for each dimension to fix.

    Returns:
        Hyperparameters whose values are the defaults.

    Raises:
        InputError: if the space or its defaults make no valid configuration, or a fixed name or
            value is not in it.
    """
    free = HyperParameters()
    build_config(space, free)
    dimensions = {dimension.name: dimension for dimension in free.space}
    hp = HyperParameters()
    for item in sorted(fix):  # one space for any order of the flags
        name, value = _parse_fixed(item, dimensions)
        if name in hp.values:
            raise InputError(f"`fix` must name a dimension once. Received: {item!r} as well.")
        hp.Fixed(name, value)
    build_config(space, hp)
    return hp


def build_config(space: Space, hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """Build the configuration that a space makes of the values in `hp`.

    Raises:
        InputError: if it makes no valid one.
    """
    name = f"{space.__name__} of {space.__code__.co_filename}"
    try:
        config = space(hp)
    except Exception as error:
        reason = error if isinstance(error, InputError) else f"{type(error).__name__}: {error}."
        raise InputError(f"The space {name} fails for {hp.values}: {reason}") from error
    types = [type(part) for part in config] if isinstance(config, tuple) else []
    if types != [VQVAEConfig, VQVAETraining]:
        raise InputError(
            f"The space {name} must return a VQVAEConfig and a VQVAETraining. Received: {config!r}."
        )
    return config


def _parse_fixed(item, dimensions):
    """Parse "name=value" into the name and a value of that dimension."""
    name, _, text = item.partition("=")
    if name not in dimensions or not text:
        raise InputError(
            f"`fix` must be NAME=VALUE, with a name of the space: {', '.join(dimensions)}. "
            f"Received: {item!r}."
        )
    dimension = dimensions[name]
    try:
        number = float(text)
    except ValueError:
        number = None
    if hasattr(dimension, "min_value"):
        if number is not None and _in_range(number, dimension):
            return name, int(number) if isinstance(dimension, Int) else number
        expectation = f"from {dimension.min_value} to {dimension.max_value}"
        expectation += f" in steps of {dimension.step}" if dimension.step else ""
    else:
        choices = [dimension.value] if isinstance(dimension, Fixed) else dimension.values
        for choice in choices:
            if str(choice).lower() == text.lower() or number == choice:
                return name, choice
        expectation = f"one of {', '.join(map(str, choices))}"
    raise InputError(f"`{name}` must be {expectation} in this space. Received: {item!r}.")


def _in_range(value, dimension):
    if dimension.step:
        return any(math.isclose(value, choice, abs_tol=1e-12) for choice in dimension.values)
    is_allowed = value.is_integer() or not isinstance(dimension, Int)
    return is_allowed and dimension.min_value <= value <= dimension.max_value
