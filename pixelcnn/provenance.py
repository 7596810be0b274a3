"""What ties a prior to the VQ-VAE whose codes it knows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run

__all__ = ["Provenance", "load_provenance"]


@dataclass(frozen=True)
class Provenance:
    """What ties a prior to the VQ-VAE whose codes it knows.

    Args:
        run: the VQ-VAE's run.
        train_positions: float array of shape (n,), the positions of the training slices, rising.
        facts: for the files that samples are told by: the hashes of both models; and, where
            training has ended, `nats_per_code`, `bits_per_slice`, `bits_per_pixel_prior` of
            `split` (test, else validate) and `nats_per_code_` of each split.
    """

    run: Run
    train_positions: np.ndarray
    facts: dict

    @property
    def positions(self) -> tuple[float, float]:
        """Lowest and highest position of the training slices."""
        return float(self.train_positions[0]), float(self.train_positions[-1])


def load_provenance(run: Run, vqvae: Path | None = None) -> Provenance:
    """Find the VQ-VAE that a prior was trained on.

    Args:
        run: the prior's run.
        vqvae: the VQ-VAE's run folder, if it no longer lies where training found it.

    Raises:
        InputError: if it is not there, or holds another model than the one that made the codes.
    """
    config = run.open_config("pixelcnn")
    missing = {"vqvae_hash", "vqvae_run", "positions"} - set(config)
    if missing:
        raise InputError(
            f"{run.config_path} lacks {', '.join(sorted(missing))}. Restore it, or train into a "
            "new --run."
        )
    train_positions = config["positions"]
    if (
        not isinstance(train_positions, list)
        or not train_positions
        or not isinstance(config["vqvae_run"], str)
    ):
        raise InputError(
            f"{run.config_path} is damaged: `positions` must be a list of numbers and `vqvae_run` "
            "a path. Restore it, or train into a new --run."
        )
    found = Run(vqvae or config["vqvae_run"])
    if not found.model_path.is_file():
        raise InputError(
            f"The prior of {run.path} knows codes of the VQ-VAE in {found.path}, but there is no "
            f"{found.model_path.name} there. Give that VQ-VAE's folder as --vqvae."
        )
    found.open_config("vqvae")
    model_hash = file_hash(found.model_path)
    if model_hash != config["vqvae_hash"]:
        raise InputError(
            f"The prior of {run.path} knows codes of the VQ-VAE {config['vqvae_hash'][:12]} (made "
            f"by run {config['vqvae_run']}), but {found.path} holds {model_hash[:12]}. Give the "
            "run that made them as --vqvae, or train a prior on this one."
        )
    facts = {"vqvae_hash": model_hash, "prior_hash": file_hash(run.trained_model_path())}
    return Provenance(found, np.array(train_positions), facts | _costs(run))


def _costs(run):
    """What a code costs, if it was measured: a run that went on and was stopped has new epochs."""
    metrics = read_json(run.metrics_path) if run.metrics_path.is_file() else {}
    splits = metrics.get("splits", {})
    epochs = len(run.history_path.read_text().splitlines()) - 1 if run.history_path.is_file() else 0
    if not splits or metrics.get("epochs") != epochs:
        return {}
    costs = {f"nats_per_code_{name}": each["nats_per_code"] for name, each in splits.items()}
    name = "test" if "test" in splits else "validate"
    return {**splits[name], "split": name, **costs}
