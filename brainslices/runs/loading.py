"""Trained models, read back from their runs."""

import zipfile

import keras

from brainslices.config import from_dict
from brainslices.errors import CORRUPT_FILE_ERRORS, InputError
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run

__all__ = ["load_model"]


def load_model(run: Run, kind: str, config_kind: type, dtype: str | None = None) -> keras.Model:
    """The trained model of a run, its best epoch.

    Args:
        run: the run.
        kind: "vqvae" or "pixelcnn".
        config_kind: dataclass of the model's configuration, which is its attribute `config`.
        dtype: dtype policy to run it in; by default the one that it was trained in.

    Raises:
        InputError: if the run is of another kind or format, has no model yet, or a damaged one.
    """
    config = from_dict(config_kind, run.open_config(kind)["model"], run.config_path)
    path = run.trained_model_path()
    try:
        model = keras.saving.load_model(path, compile=False)
        if dtype and dtype != model.dtype_policy.name:
            trained = model
            model = type(trained).from_config({**trained.get_config(), "dtype": dtype})
            model.build_from_config(trained.get_build_config())
            model.set_weights(trained.get_weights())
    except CORRUPT_FILE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        if not zipfile.is_zipfile(path):
            reason = "it is no whole .keras file"
        raise InputError(
            f"{path} cannot be loaded: it is damaged, or of another version ({reason}). Restore "
            "it, or train again into a new --run."
        ) from error
    if model.config != config:
        raise InputError(
            f"{path} holds another architecture than {run.config_path} describes. Restore the two "
            "together, or train again into a new --run."
        )
    # Identifies the model to whatever depends on it, as a prior does on its VQ-VAE.
    model.file_hash = file_hash(path)
    return model
