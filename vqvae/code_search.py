"""Search for codes that decode to a better image than the nearest ones, or cost fewer bits."""

import itertools
import math

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

# A code mostly changes the image within the 3 x 3 cells around it: codes this far apart are tried
# at the same time.
SPACING = 3
# Nearest codes of each latent that are tried: more if their bits count, since the cheaper codes may
# be farther away.
CANDIDATES, CANDIDATES_WITH_RATE = 4, 8


class CodeSearch:
    """Encode images by the images that their codes decode to, and by the bits of the codes.

    Reduces D + rate_weight * R by coordinate descent: D is the reconstruction loss that the model
    was trained on, of the clipped image, R the bits per pixel under an entropy model. The search
    starts at the nearest codes. A sweep tries the nearest few codes of each latent in every cell,
    and accepts one if it lowers the sum over the cells around; how it changes the bits of later
    codes is ignored. After each sweep D and R are computed exactly. The best grid of all sweeps is
    returned, which is never worse than that of the nearest codes.

    Args:
        model: a built `VQVAE`, which decodes.
        encoding: number of sweeps (0 returns the nearest codes), rate weight and entropy model.

    Call arguments:
        images: float array of shape (batch, rows, cols, 1), in [0, 1].
        latents: float array of shape (batch, r, c, embedding_dim), the latents of the images.
        rows: int array of shape (batch,), the rows of the images for the entropy model.

    Returns:
        The codes, int32 array of shape (batch, r, c), and the nats of each, float32 of that shape;
        None without an entropy model.

    Example:
        >>> search = CodeSearch(vqvae, Encoding(sweeps=2))  # doctest: +SKIP
        >>> codes, _ = search(images, vqvae.encode(images))  # doctest: +SKIP

    Reference:
        Encoding by the true rate-distortion cost, as video encoders do: Sullivan, Wiegand 1998,
        "Rate-distortion optimization for video compression".
    """

    def __init__(self, model: VQVAE, encoding: Encoding):
        self.model, self.encoding, rate_weight = model, encoding, encoding.rate_weight
        self.loss_per_nat = rate_weight / math.log(2) / math.prod(model.image_shape)
        count = CANDIDATES_WITH_RATE if rate_weight else CANDIDATES
        self.count = min(count, model.config.num_embeddings)
        sides = zip(model.code_grid_shape, model.crop[2:], strict=True)
        self._weights = [_overlaps(cells, pixels) for cells, pixels in sides]
        self._losses = compiled(self._compute_losses, model)
        self._step = compiled(self._try_candidate, model)

    def __call__(
        self, images: np.ndarray, latents: np.ndarray, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Encode a batch of images."""
        images = np.asarray(images, "float32")
        if self.encoding.sweeps:
            codes = self._search(images, latents, rows)
        else:
            codes = np.asarray(self.model.quantizer.to_codes(latents))
        entropy_model = self.encoding.entropy_model
        return codes, entropy_model and entropy_model(codes, codes[..., None], rows)[..., 0]

    def _search(self, images, latents, rows):
        """Return the best codes of all sweeps, and of the nearest ones, at which it starts."""
        scores = self.model.quantizer.scores(latents)
        candidates = np.asarray(ops.top_k(scores, self.count)[1], "int32")
        codes = candidates[..., 0]
        costs = self._compute_costs(codes, candidates, rows)
        losses, distortion = self._losses(images, codes)
        best, lowest = codes, np.asarray(distortion) + _total(costs, candidates, codes)
        for sweep in range(self.encoding.sweeps):
            first = 0 if sweep else 1  # the first sweep starts at the candidates of rank 0
            codes, losses, distortion = self._sweep(images, codes, losses, candidates, costs, first)
            costs = self._compute_costs(codes, candidates, rows)
            total = np.asarray(distortion) + _total(costs, candidates, codes)
            is_better = total < lowest
            lowest = np.where(is_better, total, lowest)
            best = np.where(is_better[:, None, None], codes, best)
        return best

    def _compute_costs(self, codes, candidates, rows):
        """rate_weight * R of each candidate, given the codes before it: (batch, r, c, n)."""
        if not self.loss_per_nat:
            return np.zeros(candidates.shape, "float32")
        return self.loss_per_nat * self.encoding.entropy_model(codes, candidates, rows)

    def _sweep(self, images, codes, losses, candidates, costs, first):
        """Try all candidates, from that of rank `first`, everywhere once; return the new state."""
        for rank in range(first, self.count):
            state = codes, _gather(costs, candidates, codes), losses
            for row, col in itertools.product(range(SPACING), repeat=2):
                sites = np.zeros(codes.shape[1:], bool)
                sites[row::SPACING, col::SPACING] = True
                state = self._step(images, *state, candidates[..., rank], costs[..., rank], sites)
            codes = np.asarray(state[0])
            # A step ignores what codes change beyond their neighbours.
            losses, distortion = self._losses(images, codes)
        return codes, losses, distortion

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
        tried_losses, _ = self._compute_losses(images, ops.where(is_tried, candidate, codes))
        change = _sum_around(tried_losses - losses) + candidate_costs - costs
        is_accepted = ops.logical_and(is_tried, change < 0)
        is_near = _sum_around(ops.cast(is_accepted, "float32")) > 0
        return (
            ops.where(is_accepted, candidate, codes),
            ops.where(is_accepted, candidate_costs, costs),
            ops.where(is_near, tried_losses, losses),
        )

    def _compute_losses(self, images: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of each cell in the loss, (batch, r, c), and the loss, (batch,)."""
        rows, cols = self._weights
        losses = loss_map(self.model, images, self.model.decode_codes(codes))[..., 0]
        # The loss itself not by products, which round to TensorFloat-32 on a GPU.
        return ops.matmul(ops.matmul(rows, losses), cols.T), ops.sum(losses, axis=(1, 2))


def loss_map(model: VQVAE, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the part of each pixel in the reconstruction loss of its image.

    Args:
        model: a `VQVAE`.
        originals: float32 tensor of shape (batch, rows, cols, 1), in [0, 1].
        reconstructions: likewise.

    Returns:
        float32 tensor of shape (batch, *sides of the crop, 1), whose sum over an image is the loss
        that the model was trained on. In an image without foreground, the term of the foreground
        is 0 here and constant in training.
    """
    config = model.config
    originals, reconstructions = model.cut(originals), model.cut(reconstructions)
    rows, cols = originals.shape[1:3]
    error = (originals - reconstructions) / model.std
    losses = config.l1_weight * ops.abs(error) + config.mse_weight * ops.square(error)
    losses /= rows * cols
    if not config.ssim_weight:
        return losses
    foreground = ops.cast(originals > FOREGROUND_THRESHOLD, "float32")
    foreground /= ops.maximum(ops.sum(foreground, axis=(1, 2), keepdims=True), 1.0)
    inner = np.zeros((rows, cols, 1), "float32")
    inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = 1 / ((rows - 2 * RADIUS) * (cols - 2 * RADIUS))
    share = config.foreground_share
    weights = config.ssim_weight * (share * foreground + (1 - share) * inner)
    return losses + weights * (1.0 - ssim_map(originals, reconstructions))


def _overlaps(cells, pixels):
    """float32 (cells, pixels): the share of each pixel, along one side, that lies in each cell."""
    starts, edges = np.arange(pixels), np.arange(cells + 1)[:, None] * pixels / cells
    overlap = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.maximum(overlap, 0.0).astype("float32")


def _gather(values, candidates, codes):
    """Take the value of each code from those of its candidates: (batch, r, c)."""
    ranks = (candidates == codes[..., None]).argmax(axis=-1)
    return np.take_along_axis(values, ranks[..., None], axis=-1)[..., 0]


def _total(costs, candidates, codes):
    """Sum the costs of the codes of each grid: (batch,)."""
    return _gather(costs, candidates, codes).sum(axis=(1, 2))


def _sum_around(values):
    """Sum over the SPACING x SPACING cells around each cell of (batch, r, c)."""
    margin = SPACING // 2
    padded = ops.pad(values, [(0, 0), (margin, margin), (margin, margin)])
    rows, cols = values.shape[1:]
    offsets = itertools.product(range(SPACING), repeat=2)
    return sum(padded[:, row : row + rows, col : col + cols] for row, col in offsets)
