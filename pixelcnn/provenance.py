"""Provenance of a prior: the VQ-VAE whose codes it models."""

from dataclasses import dataclass

import numpy as np

from brainslices.errors import InputError
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from brainslices.types import PathLike

__all__ = ["Provenance", "load_provenance"]

# Positions in millimetres differ between subjects: each slice may have one of its own.
MAX_CANDIDATES = 32


@dataclass(frozen=True)
class Provenance:
    """Provenance of a prior.

    Args:
        run: the run of the VQ-VAE.
        train_positions: float array of shape (n,), the positions of the training slices, rising.
        metadata: for `metrics.json` of samples: `vqvae_hash` and `prior_hash`; and, if training has
            ended, `nats_per_code`, `bits_per_slice` and `bits_per_pixel_prior` of `split` (test,
            else validate) and `nats_per_code_` of each split.
    """

    run: Run
    train_positions: np.ndarray
    metadata: dict

    @property
    def positions(self) -> tuple[float, float]:
        """Lowest and highest position of the training slices."""
        return float(self.train_positions[0]), float(self.train_positions[-1])

    @property
    def candidate_positions(self) -> np.ndarray:
        """Positions among which that of an image is estimated: at most 32 of the training slices.

        Spread evenly over their order.
        """
        trained = np.unique(self.train_positions)
        count = min(len(trained), MAX_CANDIDATES)
        return trained[np.linspace(0, len(trained) - 1, count).round().astype(int)]


def load_provenance(
    run: PathLike, vqvae: PathLike | None = None, decoder: object = None
) -> Provenance:
    """Load the provenance of a prior and check it against its VQ-VAE.

    Args:
        run: the prior's run folder.
        vqvae: the VQ-VAE's run folder; None for the path that training recorded.
        decoder: a loaded model to use instead of the VQ-VAE's run, which then need not exist. Its
            `file_hash` is checked if it has one, as models that were loaded from a run have.

    Raises:
        InputError: if the VQ-VAE is missing, or not the one that encoded the prior's training data.
    """
    run = Run(run)
    config = run.open_config("pixelcnn")
    vqvae_run = Run(vqvae or config["vqvae_run"])
    if decoder is None:
        _check_hash(run, config, _vqvae_hash(run, vqvae_run), f"{vqvae_run.path} holds")
    elif decoder_hash := getattr(decoder, "file_hash", None):
        _check_hash(run, config, decoder_hash, "`decoder` is")
    hashes = {
        "vqvae_hash": config["vqvae_hash"],
        "prior_hash": file_hash(run.trained_model_path()),
    }
    return Provenance(vqvae_run, np.array(config["positions"]), hashes | _rates(run))


def _vqvae_hash(run, vqvae_run):
    if not vqvae_run.model_path.is_file():
        raise InputError(
            f"The prior of {run.path} models codes of the VQ-VAE in {vqvae_run.path}, which has no "
            f"{vqvae_run.model_path.name}. Give that VQ-VAE's run folder as --vqvae."
        )
    vqvae_run.open_config("vqvae")
    return file_hash(vqvae_run.model_path)


def _check_hash(run, config, model_hash, holder):
    if model_hash != config["vqvae_hash"]:
        raise InputError(
            f"The prior of {run.path} models codes of the VQ-VAE {config['vqvae_hash'][:12]} "
            f"(encoded by run {config['vqvae_run']}), but {holder} {model_hash[:12]}. Give the run "
            "that encoded them as --vqvae, or train a prior on this VQ-VAE."
        )


def _rates(run):
    """The rates that training measured, unless a resumed training has trained new epochs since."""
    metrics = run.read_metrics()
    splits, epochs = metrics.get("splits", {}), len(run.read_history().get("epoch", ()))
    if not splits or metrics.get("epochs") != epochs:
        return {}
    nats = {f"nats_per_code_{name}": split["nats_per_code"] for name, split in splits.items()}
    reported = "test" if "test" in splits else "validate"
    return {**splits[reported], "split": reported, **nats}
