"""What a search may vary: functions from keras-tuner's hyper-parameters to configurations.

A space declares its dimensions on `hp` as it asks for their values, all of them in every call. To
make one, copy a function
below into a file of its own, name it `space`, and give that file as `--space`.
"""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

from keras_tuner import HyperParameters
from keras_tuner.engine.hyperparameters import Fixed, Int

from brainslices.errors import InputError
from vqvae.config import DEFAULT, VQVAEConfig, VQVAETraining

__all__ = ["SPACES", "apply", "codebook", "declare", "full", "load_space"]

CODEBOOK_SIZES = [2**power for power in range(4, 13)]


def codebook(hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """The default VQ-VAE with another codebook size, and a code for 4 x 4 or 8 x 8 pixels."""
    num_embeddings = hp.Choice("num_embeddings", CODEBOOK_SIZES, default=512)
    levels = {4: 2, 8: 3}[hp.Choice("downsampling", [4, 8], default=8)]
    channels = DEFAULT.model.channels[:levels]
    model = replace(DEFAULT.model, num_embeddings=num_embeddings, channels=channels)
    return model, DEFAULT.training


def full(hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """All that decides how much codes can hold, how many there are, and how they are learned."""
    model, training = codebook(hp)
    width = hp.Choice("width", [32, 64, 96], default=64)
    model = replace(
        model,
        embedding_dim=hp.Choice("embedding_dim", [8, 16, 32, 64], default=32),
        magnification=hp.Choice("magnification", [0.8, 1.0, 1.2], default=1.2),
        channels=(width, *[2 * width] * (len(model.channels) - 1)),
        commitment_cost=hp.Float("commitment_cost", 0.05, 1.0, sampling="log", default=0.25),
    )
    rate = hp.Float("learning_rate", 4e-4, 4e-3, sampling="log", default=1.5e-3)
    return model, replace(training, learning_rate=rate)


SPACES = {"codebook": codebook, "full": full}


def load_space(name: str):
    """The space of a name in `SPACES`, or the function `space` of a Python file.

    Raises:
        InputError: if there is no such file, or it has no such function.
    """
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"The file {name} of `space` is not there. Give one that is.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run ({type(error).__name__}: {error}).") from error
    if not callable(getattr(module, "space", None)):
        raise InputError(f"{path} has no function `space(hp)`. See tuning/spaces.py for examples.")
    return module.space


def declare(space, fix: tuple[str, ...] = ()) -> HyperParameters:
    """The dimensions of a space, those that are fixed with their one value.

    Args:
        space: a function as those above.
        fix: "name=value" for each dimension to fix.

    Returns:
        Hyper-parameters whose values are the defaults.

    Raises:
        InputError: if the space or its defaults make no valid configuration, or a fixed name or
            value is not in it.
    """
    free = HyperParameters()
    apply(space, free)
    chosen = HyperParameters()
    for words in sorted(fix):  # in whatever order they were given, it is one space
        name, value = _fixed(words, {dimension.name: dimension for dimension in free.space})
        if name in chosen.values:
            raise InputError(f"`fix` must name a dimension once. Received: {words!r} as well.")
        chosen.Fixed(name, value)
    apply(space, chosen)
    return chosen


def apply(space, hp: HyperParameters) -> tuple[VQVAEConfig, VQVAETraining]:
    """The configuration that a space makes of some values.

    Raises:
        InputError: if it makes no valid one.
    """
    name = f"{space.__name__} of {space.__code__.co_filename}"
    try:
        found = space(hp)
    except InputError as error:
        raise InputError(f"The space {name} makes nothing of {hp.values}: {error}") from error
    except Exception as error:
        raise InputError(
            f"The space {name} makes nothing of {hp.values}: {type(error).__name__}: {error}."
        ) from error
    kinds = [type(each) for each in found] if isinstance(found, tuple) else type(found)
    if kinds != [VQVAEConfig, VQVAETraining]:
        raise InputError(
            f"The space {name} must return a VQVAEConfig and a VQVAETraining. Received: {found!r}."
        )
    return found


def _fixed(words, dimensions):
    """Name and value of "name=value"."""
    name, _, text = words.partition("=")
    if name not in dimensions or not text:
        raise InputError(
            f"`fix` must be NAME=VALUE, with a name of the space: {', '.join(dimensions)}. "
            f"Received: {words!r}."
        )
    dimension, value = dimensions[name], _number(text)
    if hasattr(dimension, "min_value"):
        if value is not None and _within(value, dimension):
            return name, int(value) if isinstance(dimension, Int) else value
        wanted = f"from {dimension.min_value} to {dimension.max_value}"
        wanted += f" in steps of {dimension.step}" if dimension.step else ""
    else:
        values = [dimension.value] if isinstance(dimension, Fixed) else dimension.values
        for each in values:
            if str(each).lower() == text.lower() or value == each:
                return name, each
        wanted = f"one of {', '.join(map(str, values))}"
    raise InputError(f"`{name}` must be {wanted} in this space. Received: {words!r}.")


def _within(value, dimension):
    """Whether a number is one that a dimension with ends, and maybe steps, can have."""
    if not dimension.min_value <= value <= dimension.max_value:
        return False
    if isinstance(dimension, Int) and not value.is_integer():
        return False
    if not dimension.step or dimension.sampling in ("log", "reverse_log"):
        return True
    steps = (value - dimension.min_value) / dimension.step
    return math.isclose(steps, round(steps), abs_tol=1e-9)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
