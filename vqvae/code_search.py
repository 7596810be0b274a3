"""Search for codes that decode to a better image than the nearest ones, or cost fewer bits."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from keras import ops

from brainslices.compilation import compiled
from brainslices.data.archive import FOREGROUND_THRESHOLD
from brainslices.evaluation.pooling import RADIUS
from brainslices.evaluation.ssim import ssim_map
from brainslices.types import Tensor
from vqvae.config import Encoding
from vqvae.model import VQVAE

__all__ = ["CodeSearch", "loss_map"]

# A code mostly changes the image within the 3 x 3 cells around it. Codes that are as far apart are
# tried at the same time.
SPACING = 3
# Nearest codes of each latent that are tried: more with an entropy model, which may prefer codes
# that are farther away. Chosen on validation slices.
CANDIDATES, CANDIDATES_WITH_RATE = 4, 8

Nats = Callable[[np.ndarray], np.ndarray]


class CodeSearch:
    """Encode images by the images that their codes decode to, and by the bits of the codes.

    Reduces D + rate_weight * R by coordinate descent: D is the reconstruction loss that the model
    was trained on, R the bits per pixel under an entropy model. The search starts at the nearest
    codes. A sweep tries the nearest few codes of each latent at every place, and keeps one if it
    lowers the sum over the cells around; a change of the bits of later codes is not foreseen. After
    each sweep D and R are computed exactly. The best grid of all sweeps is returned, which is never
    worse than that of the nearest codes.

    Args:
        model: a built `VQVAE`.
        encoding: number of sweeps, without any of which the nearest codes are returned; and the
            rate weight.

    Call arguments:
        images: float32 array of shape (batch, rows, cols, 1), in [0, 1].
        nats: function from codes, int32 of shape (batch, r, c), to the nats of every code at each
            place given the codes before it, float32 of shape (batch, r, c, num_embeddings), such as
            a `pixelcnn.entropy_model.EntropyModel`; or None.

    Returns:
        The codes, int32 array of shape (batch, r, c), and the nats of each, float32 of that shape;
        None without `nats`.

    Example:
        >>> search = CodeSearch(vqvae, Encoding(sweeps=2))  # doctest: +SKIP
        >>> codes, _ = search(images)  # doctest: +SKIP

    Reference:
        Encoding by the true rate-distortion cost, as video encoders do: Sullivan, Wiegand 1998,
        "Rate-distortion optimization for video compression".
    """

    def __init__(self, model: VQVAE, encoding: Encoding):
        self.model, self.sweeps, rate_weight = model, encoding.sweeps, encoding.rate_weight
        self.loss_per_nat = rate_weight / math.log(2) / math.prod(model.image_shape)
        self.count = CANDIDATES_WITH_RATE if rate_weight else CANDIDATES
        self.count = min(self.count, model.config.num_embeddings)
        sides = zip(model.code_grid_shape, model.crop[2:], strict=True)
        self._cell_weights = [_cell_weights(cells, pixels) for cells, pixels in sides]
        self._losses = compiled(self._compute_losses, model)
        self._step = compiled(self._try_candidate, model)

    def __call__(
        self, images: np.ndarray, nats: Nats | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Encode a batch of images."""
        scores = self.model.quantizer.scores(self.model.encode(images))
        candidates = np.asarray(ops.top_k(scores, self.count)[1], "int32")
        codes = candidates[..., 0]
        table = nats(codes) if nats else None
        if not self.sweeps:
            return codes, _of_codes(table, codes)
        best = codes, _of_codes(table, codes)
        losses = np.asarray(self._losses(images, codes))
        lowest = self._total(losses, best[1])
        for _ in range(self.sweeps):
            codes = self._sweep(images, codes, losses, candidates, table)
            table = nats(codes) if nats else None
            losses, code_nats = np.asarray(self._losses(images, codes)), _of_codes(table, codes)
            total = self._total(losses, code_nats)
            is_better = (total < lowest)[:, None, None]
            lowest = np.minimum(total, lowest)
            best = (
                np.where(is_better, codes, best[0]),
                None if best[1] is None else np.where(is_better, code_nats, best[1]),
            )
        return best

    def _total(self, losses, nats):
        """D + rate_weight * R of each grid."""
        rate = 0.0 if nats is None else nats.sum(axis=(1, 2))
        return losses.sum(axis=(1, 2)) + self.loss_per_nat * rate

    def _sweep(self, images, codes, losses, candidates, table):
        """Try all candidates at all places once."""
        costs = 0.0 * candidates.astype("float32")
        if table is not None:
            costs = self.loss_per_nat * np.take_along_axis(table, candidates, axis=-1)
        state = codes, _of_codes(costs, _ranks(candidates, codes)), losses
        for rank, row, col in itertools.product(range(self.count), range(SPACING), range(SPACING)):
            sites = np.zeros(codes.shape[1:], bool)
            sites[row::SPACING, col::SPACING] = True
            state = self._step(images, *state, candidates[..., rank], costs[..., rank], sites)
        return np.asarray(state[0])

    def _try_candidate(
        self,
        images: Tensor,
        codes: Tensor,
        costs: Tensor,
        losses: Tensor,
        candidate: Tensor,
        candidate_costs: Tensor,
        sites: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Replace the codes at `sites` where that lowers the cost; return the new state."""
        is_tried = ops.logical_and(sites, candidate != codes)
        tried_losses = self._compute_losses(images, ops.where(is_tried, candidate, codes))
        change = _sum_around(tried_losses - losses) + candidate_costs - costs
        is_kept = ops.logical_and(is_tried, change < 0)
        is_near = _sum_around(ops.cast(is_kept, "float32")) > 0
        return (
            ops.where(is_kept, candidate, codes),
            ops.where(is_kept, candidate_costs, costs),
            ops.where(is_near, tried_losses, losses),
        )

    def _compute_losses(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return the part of each cell in the loss, (batch, r, c)."""
        rows, cols = self._cell_weights
        losses = loss_map(self.model, images, self.model.decode_codes(codes))
        return ops.matmul(ops.matmul(rows, losses[..., 0]), cols.T)


def loss_map(model: VQVAE, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the part of each pixel in the reconstruction loss of its image.

    Args:
        model: a `VQVAE`.
        originals: float tensor of shape (batch, rows, cols, 1), in [0, 1].
        reconstructions: likewise.

    Returns:
        float32 tensor of shape (batch, *sides of the crop, 1), whose sum over an image is the loss
        that the model was trained on (an image without foreground has no share for it).
    """
    config = model.config
    originals, reconstructions = model.cut(originals), model.cut(reconstructions)
    rows, cols = originals.shape[1:3]
    error = (originals - reconstructions) / model.std
    losses = config.l1_weight * ops.abs(error) + config.mse_weight * ops.square(error)
    foreground = ops.cast(originals > FOREGROUND_THRESHOLD, "float32")
    foreground /= ops.maximum(ops.sum(foreground, axis=(1, 2), keepdims=True), 1.0)
    inner = np.zeros((rows, cols, 1), "float32")
    inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = 1 / ((rows - 2 * RADIUS) * (cols - 2 * RADIUS))
    share = config.foreground_share
    weights = config.ssim_weight * (share * foreground + (1 - share) * inner)
    return losses / (rows * cols) + weights * (1.0 - ssim_map(originals, reconstructions))


def _cell_weights(cells, pixels):
    """float32 (cells, pixels): the share of each pixel, along one side, that lies in each cell."""
    starts, edges = np.arange(pixels), np.arange(cells + 1)[:, None] * pixels / cells
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.maximum(overlap, 0.0).astype("float32")


def _of_codes(table, codes):
    """Entries of a table (batch, r, c, n) at the indices of shape (batch, r, c); None of None."""
    return None if table is None else np.take_along_axis(table, codes[..., None], axis=-1)[..., 0]


def _ranks(candidates, codes):
    """Index of each code among its candidates, (batch, r, c)."""
    return (candidates == codes[..., None]).argmax(axis=-1)


def _sum_around(values):
    """Sum over the SPACING x SPACING cells around each cell of (batch, r, c)."""
    margin = SPACING // 2
    padded = ops.pad(values, [(0, 0), (margin, margin), (margin, margin)])
    rows, cols = values.shape[1:]
    offsets = itertools.product(range(SPACING), repeat=2)
    return sum(padded[:, row : row + rows, col : col + cols] for row, col in offsets)
