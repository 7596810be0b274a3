"""Selection of a configuration, a preset or a JSON file, for both stages.

`Selection` reads files, so it cannot live in `brainslices.config`, which must not import `runs`.
A command subscripts it with the names of its presets, so that `--help` lists them:
`Selection[Literal["default", "small"]]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from brainslices.config import Model, Preset, Training
from brainslices.errors import InputError
from brainslices.runs.json_files import load_config

__all__ = ["Selection"]

PresetName = TypeVar("PresetName", bound=str)


@dataclass(frozen=True)
class Selection(Generic[PresetName]):
    """Configuration that supplies the values of all other flags."""

    preset: PresetName = "default"  # type: ignore[assignment]
    """Configuration to start from."""
    config: Path | None = None
    """JSON file with `model` and `training` (a run's config.json) to start from instead."""

    def load(self, presets: Mapping[str, Preset[Model, Training]]) -> tuple[Model, Training]:
        """Return the selected configuration.

        Args:
            presets: name -> preset; all of the same types.

        Returns:
            The model's and the training's configuration.

        Raises:
            InputError: if there is no such preset, or the file is missing, or has an unknown,
                missing or wrong value.
        """
        if self.preset not in presets:
            raise InputError(
                f"`preset` must be one of {', '.join(presets)}. Received: preset={self.preset!r}."
            )
        preset = presets[self.preset]
        if self.config is None:
            return preset.model, preset.training
        return load_config(self.config, type(preset.model), type(preset.training))
