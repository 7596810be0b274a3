"""Encoding of slices to codes that cost few bits under a prior."""

from typing import Any

import numpy as np
from keras import ops
from sklearn.neighbors import NearestNeighbors

from brainslices.data.slices import Slices
from brainslices.data.subject_table import load_subjects
from brainslices.errors import InputError
from brainslices.types import Tensor
from pixelcnn.conditions import add_subjects
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import compiled
from pixelcnn.slice_prior import SlicePrior

__all__ = ["RateDistortionEncoder", "SliceEncoder"]

# Each sweep chooses all codes anew, given those of the sweep before.
SWEEPS = 4


class RateDistortionEncoder:
    """Encode slices to codes that are near their latents and likely under a prior.

    The codes c of the latents z minimise D + rate_weight * R with D = sum_i |z_i - e(c_i)|^2 / s^2
    and R = -sum_i log p(c_i | codes before c_i), in nats. s^2 is the mean squared distance from a
    vector of the codebook to the nearest other one, so that a weight means the same for codebooks
    of any scale. The search starts at the nearest codes. A sweep chooses each code given the last
    sweep's codes before it; the best codes of all sweeps are returned, so that none has a higher
    D + rate_weight * R than the nearest codes. With weight 0 these are returned.

    Args:
        model: a built `PixelCNN`.
        decoder: object with `encode(images)` and `quantizer`, as a `VQVAE` has.
        rate_weight: float, at least 0; the distance that a nat is worth.

    Call arguments:
        images: float array of shape (batch, rows, cols, 1), in [0, 1].
        position: float array of shape (batch,), in [0, 1], or with conditions.

    Returns:
        The codes, int32 array of shape (batch, r, c), and the nats of each, float32 of that shape.

    Raises:
        InputError: if `rate_weight` is negative or not finite.

    Reference:
        Chou, Lookabaugh, Gray 1989, "Entropy-constrained vector quantization", with the conditional
        distribution of a prior instead of the frequencies of the codes.
    """

    def __init__(self, model: PixelCNN, decoder: Any, rate_weight: float):
        if not 0 <= rate_weight < float("inf"):
            raise InputError(
                f"`rate_weight` must be finite and at least 0. Received: rate_weight={rate_weight}."
            )
        self.model, self.decoder, self.rate_weight = model, decoder, rate_weight
        self.squared_spacing = _squared_spacing(np.asarray(decoder.quantizer.codebook))
        self._search = compiled(self._choose_codes, model)

    def __call__(self, images: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch of slices."""
        scores = self.decoder.quantizer.scores(self.decoder.encode(images))
        # |z - e|^2 = |z|^2 - 2 scores, and |z|^2 is the same for all codes.
        distances = ops.convert_to_numpy(scores) * (-2 / self.squared_spacing)
        codes, nats = self._search(distances, np.asarray(position, "float32"))
        return np.asarray(codes), np.asarray(nats)

    def _choose_codes(self, distances: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        codes = ops.cast(ops.argmin(distances, axis=-1), "int32")
        best_codes, best_nats, best_costs = codes, None, None
        for _ in range(1 + SWEEPS * bool(self.rate_weight)):
            logits = self.model({"codes": codes, "position": position})
            costs = distances - self.rate_weight * ops.log_softmax(logits)
            nats, total = self.model.nats(codes, logits), self._total(costs, codes)
            if best_nats is None:
                best_nats, best_costs = nats, total
            is_better = total < best_costs
            best_costs = ops.where(is_better, total, best_costs)
            is_better = is_better[:, None, None]
            best_codes = ops.where(is_better, codes, best_codes)
            best_nats = ops.where(is_better, nats, best_nats)
            codes = ops.cast(ops.argmin(costs, axis=-1), "int32")
        return best_codes, best_nats

    def _total(self, costs, codes):
        """Sum the costs of the chosen codes of each grid."""
        chosen = ops.take_along_axis(costs, codes[..., None], axis=-1)
        return ops.sum(chosen, axis=(1, 2, 3))


class SliceEncoder:
    """Encode the slices of a data set by their row; positions and conditions are the data's.

    Args:
        prior: the prior; its decoder encodes the slices.
        slices: the slices, as `open_slices` returns them.
        rate_weight: as for `RateDistortionEncoder`.

    Call arguments:
        images: as for `RateDistortionEncoder`.
        rows: int array of shape (batch,), the rows of the images in `slices`.
    """

    def __init__(self, prior: SlicePrior, slices: Slices, rate_weight: float):
        prior_hash = prior.provenance.metadata["prior_hash"]
        self.metadata = {"prior_hash": prior_hash, "rate_weight": rate_weight}
        table = load_subjects(slices.path) if slices.archive_hash else {}
        positions = np.array([record.position for record in slices.records], "float32")
        variables = prior.model.condition_variables
        self._positions = add_subjects(variables, positions, table, slices.subjects)
        self._encode = RateDistortionEncoder(prior.model, prior.decoder, rate_weight)

    def __call__(self, images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch of slices."""
        return self._encode(images, self._positions[rows])


def _squared_spacing(codebook):
    """Mean squared distance of each code vector to the nearest other one."""
    distances, _ = NearestNeighbors(n_neighbors=2).fit(codebook).kneighbors(codebook)
    return float(np.mean(np.square(distances[:, 1]))) or 1.0
