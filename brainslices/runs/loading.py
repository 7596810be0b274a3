"""Load trained models from their runs."""

import importlib
import zipfile
from typing import Any

import keras

from brainslices import keras_setup  # noqa: F401  before any layer is built
from brainslices.config import from_dict
from brainslices.errors import CORRUPT_FILE_ERRORS, InputError
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from brainslices.types import PathLike

__all__ = ["load_model"]


def load_model(run: PathLike, kind: str, dtype: str | None = None) -> Any:
    """Load the trained model of a run, its best epoch.

    Args:
        run: the run folder.
        kind: "vqvae" or "pixelcnn", also the package whose module `model` registers the model's
            class with Keras; so a caller need not import that package.
        dtype: dtype policy to run the model in; by default the one it was trained in.

    Returns:
        The model, a `keras.Model` whose attribute `config` is its configuration dataclass.

    Raises:
        InputError: if the run has another kind or format, or its model is missing or corrupt.
    """
    run = Run(run)
    values, path = run.open_config(kind)["model"], run.trained_model_path()
    importlib.import_module(f"{kind}.model")
    try:
        model = keras.saving.load_model(path, compile=False)
        if dtype and dtype != model.dtype_policy.name:
            model = _with_dtype(model, dtype)
    except CORRUPT_FILE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        if not zipfile.is_zipfile(path):
            reason = "it is not a complete .keras file"
        raise InputError(
            f"{path} cannot be loaded: it is damaged, or of another version ({reason}). Restore "
            "it, or train again into a new --run."
        ) from error
    if model.config != from_dict(type(model.config), values, run.config_path):
        raise InputError(
            f"{path} holds another architecture than {run.config_path} describes. Restore the two "
            "together, or train again into a new --run."
        )
    # Identifies the model to whatever depends on it, as a prior does on its VQ-VAE.
    model.file_hash = file_hash(path)
    return model


def _with_dtype(trained, dtype):
    model = type(trained).from_config({**trained.get_config(), "dtype": dtype})
    model.build_from_config(trained.get_build_config())
    model.set_weights(trained.get_weights())
    return model
