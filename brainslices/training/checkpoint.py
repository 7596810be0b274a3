"""Checkpoints: everything that a training needs to resume, in one file."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from brainslices.distributed.collectives import run_on_primary
from brainslices.errors import CorruptFileError, InputError
from brainslices.reading import reading
from brainslices.runs.arrays import read_arrays
from brainslices.runs.atomic import atomic_path
from brainslices.runs.run import Run
from brainslices.schema import NATURAL, NUMBER, Rule, check_fields
from brainslices.training.compat import sync_variables
from brainslices.types import PathLike

__all__ = ["TrainingProgress", "has_finite_variables", "load_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)

PROGRESS_RULES: dict[str, Rule] = {
    "epoch": NATURAL,
    "step": NATURAL,
    "history": Rule(
        lambda value: all(NUMBER.is_valid(score) for scores in value.values() for score in scores),
        "lists of finite numbers",
    ),
    "seconds": Rule(lambda value: NUMBER.is_valid(value) and value >= 0, "a number, at least 0"),
}


@dataclass
class TrainingProgress:
    """Progress of a training; shared and updated by its callbacks.

    Args:
        epoch: finished epochs.
        step: finished steps of the current epoch.
        history: name -> one value for each finished epoch.
        seconds: training time so far, over all processes that trained one after the other.
    """

    epoch: int = 0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def save_checkpoint(run: PathLike, model: keras.Model, progress: TrainingProgress) -> None:
    """Write weights, optimizer, RNG states, metrics and progress of a compiled model.

    The previous checkpoint is kept as `state.previous.npz`.
    """
    run = Run(run)
    sync_variables(model)
    arrays: dict[str, Any] = {"progress": np.array(json.dumps(vars(progress)))}
    arrays |= {key: np.asarray(value) for key, value in _variables(model).items()}
    if run.checkpoint_path.exists():
        _copy(run.checkpoint_path, run.previous_checkpoint_path)
    with atomic_path(run.checkpoint_path) as temporary:
        np.savez(temporary, **arrays)


def load_checkpoint(run: PathLike, model: keras.Model) -> TrainingProgress:
    """Restore a compiled model from the run's checkpoint, if there is one.

    If the file is corrupt, the previous checkpoint replaces it, with a warning. Process 0 reads
    and broadcasts.

    Returns:
        The progress of the training; of a new run, an empty one.

    Raises:
        InputError: if both checkpoints are corrupt, or belong to another model or optimizer.
    """
    run = Run(run)
    checkpoint = run_on_primary(_read_latest, run)
    if checkpoint is None:
        return TrainingProgress()
    arrays, progress = checkpoint
    variables = _variables(model)
    shapes = {key: tuple(value.shape) for key, value in variables.items()}
    stored = {key: array.shape for key, array in arrays.items()}
    keys = sorted(shapes | stored)
    if different := [key for key in keys if shapes.get(key) != stored.get(key)]:
        key = different[0]
        raise InputError(
            f"{run.checkpoint_path} does not fit the model and optimizer of {run.config_path}: "
            f"variable {key} must have shape {shapes.get(key)}. Received: {stored.get(key)} "
            f"({len(different)} variables differ). Restore both files together, or use a new --run."
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])
    return progress


def has_finite_variables(model: keras.Model) -> bool:
    """Return whether a compiled model's weights and its optimizer's variables are all finite."""
    sync_variables(model)
    return all(
        np.isfinite(np.asarray(variable)).all()
        for key, variable in _variables(model).items()
        if not key.startswith("metric")
    )


def _copy(source, target):
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _read_latest(run):
    """Read the checkpoint, or the previous one if it is corrupt; None without a checkpoint."""
    if not run.checkpoint_path.exists():
        return None
    try:
        return _read(run, run.checkpoint_path)
    except CorruptFileError as corrupt:
        if not run.previous_checkpoint_path.exists():
            raise
        try:
            arrays, progress = _read(run, run.previous_checkpoint_path)
        except CorruptFileError as previous:
            raise CorruptFileError(
                f"{corrupt} The previous checkpoint is corrupt as well: {previous}"
            ) from previous
        logger.warning(
            f"{corrupt} Resuming from the previous checkpoint, "
            f"epoch {progress.epoch + 1}, step {progress.step}."
        )
        # The next save would move the corrupt file over the only good one.
        _copy(run.previous_checkpoint_path, run.checkpoint_path)
        return arrays, progress


def _read(run, path):
    hint = (
        f"Use a new --run to start over; {run.model_path}, the best epoch's model, is not affected."
    )
    with reading(path, "checkpoint", hint):
        arrays = read_arrays(path)
        progress = check_fields(json.loads(arrays.pop("progress").item()), PROGRESS_RULES)
        if any(len(values) != progress["epoch"] for values in progress["history"].values()):
            raise ValueError(f"its history must have {progress['epoch']} values of each metric")
        if not all(array.dtype.kind in "biuf" for array in arrays.values()):
            raise ValueError("all of its arrays must be numeric")
    return arrays, TrainingProgress(**progress)


def _variables(model):
    """Name each variable by its position: Keras's own names count the layers of the process."""
    groups = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metric": model.metrics_variables,
    }
    seen, named = set(), {}
    for group, variables in groups.items():
        for number, variable in enumerate(variables):
            if id(variable) not in seen:
                seen.add(id(variable))
                named[f"{group}.{number:04d}"] = variable
    return named
