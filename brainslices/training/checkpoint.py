"""How far a training has come, and all that it needs to go on from there, in one file."""

import json
import shutil
from dataclasses import dataclass, field

import keras
import numpy as np
from tqdm import tqdm

from brainslices.distributed.collectives import run_on_primary
from brainslices.errors import CORRUPT_FILE_ERRORS, InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.run import Run

__all__ = ["TrainingProgress", "is_finite", "load_checkpoint", "save_checkpoint"]


@dataclass
class TrainingProgress:
    """How far a training has come.

    Args:
        epoch: finished epochs.
        step: finished steps of the epoch under way.
        history: name -> one value for each finished epoch.
        seconds: time spent so far, over all the processes that had a part in it.
    """

    epoch: int = 0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def save_checkpoint(run: Run, model: keras.Model, state: TrainingProgress) -> None:
    """Write all that going on needs: weights, optimiser, random generators, metrics, progress.

    The state before it is kept beside it.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    arrays = {key: np.asarray(value) for key, value in _variables(model).items()}
    arrays["progress"] = np.array(json.dumps(vars(state)))
    if run.checkpoint_path.exists():
        _copy(run.checkpoint_path, run.previous_checkpoint_path)
    with atomic_path(run.checkpoint_path) as temporary:
        np.savez(temporary, **arrays)


def is_finite(model: keras.Model) -> bool:
    """Whether all of a compiled model's weights and its optimiser's state are finite numbers."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return all(
        np.isfinite(np.asarray(variable)).all()
        for key, variable in _variables(model).items()
        if not key.startswith("metric")
    )


def _copy(path, place):
    with atomic_path(place) as temporary:
        shutil.copyfile(path, temporary)


def load_checkpoint(run: Run, model: keras.Model) -> TrainingProgress:
    """Put a saved state back into a compiled model; a fresh run gives a fresh `TrainingProgress`.

    A file that a failing disk has damaged is replaced by the state before it, which is said.
    Of several processes the first reads for all.

    Raises:
        InputError: if both are damaged, or the file belongs to another architecture.
    """
    found = run_on_primary(_read_last_state, run)
    if found is None:
        return TrainingProgress()
    arrays, state = found
    variables = _variables(model)
    shapes = {key: tuple(value.shape) for key, value in variables.items()}
    if shapes != {key: value.shape for key, value in arrays.items()}:
        raise InputError(
            f"{run.checkpoint_path} holds the state of another architecture than {run.config_path} "
            "describes. Restore the two together, or train into a new --run."
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])
    return state


def _read_last_state(run):
    if not run.checkpoint_path.exists():
        return None
    try:
        return _read_state(run, run.checkpoint_path)
    except InputError as damage:
        if not run.previous_checkpoint_path.exists():
            raise
        try:
            arrays, state = _read_state(run, run.previous_checkpoint_path)
        except InputError as older:
            raise InputError(f"{damage} So is the one before it: {older}") from older
        place = f"epoch {state.epoch + 1}, step {state.step}"
        tqdm.write(f"warning: {damage} Going on from the state before it, {place}.")
        _copy(run.previous_checkpoint_path, run.checkpoint_path)
        return arrays, state


def _read_state(run, path):
    """Arrays by name, and how far the training had come."""
    try:
        with np.load(path) as saved:
            arrays = {key: saved[key] for key in saved.files}
        return arrays, TrainingProgress(**json.loads(arrays.pop("progress").item()))
    except CORRUPT_FILE_ERRORS as error:
        raise InputError(
            f"{path} is damaged ({error}). Train into a new --run to start over; "
            f"{run.model_path}, the best epoch's model, can still be used."
        ) from error


def _variables(model):
    """Every variable by its place; names count how many layers the process has made before."""
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
