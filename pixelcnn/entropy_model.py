"""A prior as the entropy model of an encoder: the nats of the codes that it may choose."""

import numpy as np
from keras import ops

from brainslices.compilation import compiled
from brainslices.data.slices import Slices
from brainslices.data.subject_table import load_subjects
from brainslices.types import PathLike
from pixelcnn.conditions import add_subjects
from pixelcnn.model import PixelCNN
from pixelcnn.positions import slice_positions
from pixelcnn.slice_prior import SlicePrior

__all__ = ["EntropyModel"]


class EntropyModel:
    """A trained prior that counts the nats of the codes of some slices.

    Args:
        model: a built `PixelCNN`.
        position: float array of shape (slices,), the positions of all slices in [0, 1], or with
            conditions.
        metadata: `vqvae_hash` and `prior_hash`.

    Call arguments:
        codes: int array of shape (batch, r, c).
        candidates: int array of shape (batch, r, c, n), codes for each grid cell.
        rows: int array of shape (batch,), which slices the codes are of.

    Returns:
        float32 array of shape (batch, r, c, n): the nats of each candidate in its cell, given the
        codes before that cell.
    """

    def __init__(self, model: PixelCNN, position: np.ndarray, metadata: dict[str, str]):
        self.model, self.position, self.metadata = model, position, metadata
        self._nats = compiled(self._compute_nats, model)

    @classmethod
    def from_run(cls, run: PathLike, vqvae: PathLike, slices: Slices) -> "EntropyModel":
        """Load the prior of a run for some slices.

        Their conditions are the data's, their positions as of `slice_positions`.

        Args:
            run: the run folder of `train_pixelcnn.py`.
            vqvae: the run folder of the VQ-VAE that encodes the slices.
            slices: the slices, as `open_slices` returns them.

        Raises:
            InputError: if a run cannot be used, or the prior models the codes of another VQ-VAE.
        """
        prior = SlicePrior.from_run(run, vqvae)
        table = load_subjects(slices.path) if slices.archive_hash else {}
        variables, positions = prior.model.condition_variables, slice_positions(prior, slices)
        positions = add_subjects(variables, positions, table, slices.subjects)
        hashes = {name: prior.provenance.metadata[name] for name in ("vqvae_hash", "prior_hash")}
        return cls(prior.model, positions, hashes)

    def __call__(self, codes: np.ndarray, candidates: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Compute the nats of the candidates."""
        codes, candidates = np.asarray(codes, "int32"), np.asarray(candidates, "int32")
        return np.asarray(self._nats(codes, candidates, self.position[rows]))

    def _compute_nats(self, codes, candidates, position):
        logits = self.model({"codes": codes, "position": position})
        # Not of all codes: of 4,096 codes that would be hundreds of megabytes.
        chosen = ops.take_along_axis(logits, candidates, axis=-1)
        return ops.logsumexp(logits, axis=-1, keepdims=True) - chosen
