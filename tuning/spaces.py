"""What a search may vary: functions from keras-tuner's hyper-parameters to configurations.

A space declares its dimensions on `hp` as it asks for their values. To make one, copy a function
below into a file of its own, name it `space`, and give that file as `--space`.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

from keras_tuner import HyperParameters

from brainslices.errors import InputError
from vqvae.config import DEFAULT, VQVAEConfig, VQVAETraining

__all__ = ["SPACES", "codebook", "declare", "full", "load_space"]

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
        InputError: if there is no such space or file, or the file has no such function.
    """
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"`space` must be {', '.join(SPACES)} or a Python file with a function `space(hp)`. "
            f"Received: space={name!r}."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
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
    _apply(space, free)
    chosen = HyperParameters()
    for words in fix:
        name, value = _fixed(words, {dimension.name: dimension for dimension in free.space})
        if name in chosen.values:
            raise InputError(f"`fix` must name a dimension once. Received: {words!r} as well.")
        chosen.Fixed(name, value)
    _apply(space, chosen)
    return chosen


def _apply(space, hp):
    try:
        found = space(hp)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The space {space.__name__} makes no configuration of its defaults "
            f"({type(error).__name__}: {error})."
        ) from error
    kinds = [type(each) for each in found] if isinstance(found, tuple) else type(found)
    if kinds != [VQVAEConfig, VQVAETraining]:
        raise InputError(
            f"The space {space.__name__} must return a VQVAEConfig and a VQVAETraining. "
            f"Received: {found!r}."
        )


def _fixed(words, dimensions):
    """Name and value of "name=value"."""
    name, _, text = words.partition("=")
    if name not in dimensions or not text:
        raise InputError(
            f"`fix` must be NAME=VALUE, with a name of the space: {', '.join(dimensions)}. "
            f"Received: {words!r}."
        )
    dimension = dimensions[name]
    if hasattr(dimension, "min_value"):
        value = _number(text)
        if value is not None and dimension.min_value <= value <= dimension.max_value:
            return name, type(dimension.default)(value)
        wanted = f"from {dimension.min_value} to {dimension.max_value}"
    else:
        for value in dimension.values:
            if str(value) == text or _number(text) == value:
                return name, value
        wanted = f"one of {', '.join(map(str, dimension.values))}"
    raise InputError(f"`{name}` must be {wanted} in this space. Received: {words!r}.")


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
