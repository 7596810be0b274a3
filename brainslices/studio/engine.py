"""What the browser app computes, without the browser; every call is independent of the others."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainslices.data.archive import SliceArchive
from brainslices.data.crop import CropBox
from brainslices.data.images import to_uint8
from brainslices.errors import InputError
from brainslices.evaluation.codecs import codec_rate, search_quality
from brainslices.evaluation.image_metrics import reconstruction_scores, similarity_map
from brainslices.evaluation.nearest import NearestTrain
from brainslices.studio.pictures import partial
from brainslices.studio.uploads import Upload

__all__ = ["BATCH", "Engine", "Reconstruction", "Sampling", "SurpriseMap"]

# Grids sampled at a time: one size, so that the sampler is compiled once.
BATCH = 8
# Pictures shown while a batch is sampled.
STEPS = 6


@dataclass(frozen=True, eq=False)
class Sampling:
    """Slices, complete or while they are sampled.

    Args:
        images: float32 array of shape (count, rows, cols), the part that codes cover.
        codes: int32 array of shape (count, r, c), -1 where not sampled yet.
        log_prob: float32 array of the same shape, nats.
        positions: float32 array of shape (count,).
        share: the part that is sampled, 1 at the end.
    """

    images: np.ndarray
    codes: np.ndarray
    log_prob: np.ndarray
    positions: np.ndarray
    share: float

    @property
    def bits(self) -> np.ndarray:
        """Bits of each slice under the prior, float64 of shape (count,)."""
        return -self.log_prob.sum(axis=(1, 2), dtype="float64") / math.log(2)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A slice, its codes and what they decode to.

    Args:
        original: float32 array of shape (rows, cols), in [0, 1].
        codes: int32 array of shape (r, c).
        image: float32 array of shape (rows, cols), the reconstruction.
        similarity: float64 array of shape (rows, cols), the SSIM map.
        scores: as `reconstruction_scores` returns them.
    """

    original: np.ndarray
    codes: np.ndarray
    image: np.ndarray
    similarity: np.ndarray
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class SurpriseMap:
    """Where a slice is unlike the validation slices.

    Args:
        original: float32 array of shape (rows, cols), the part that codes cover.
        values: float32 array of the same shape, nats.
        highest: value at the end of the colour map.
        bits: bits under the prior.
        percentile: of the bits, among validation slices near its position.
        position: the likeliest slice position.
    """

    original: np.ndarray
    values: np.ndarray
    highest: float
    bits: float
    percentile: float
    position: float


class Engine:
    """A prior, the decoder of its codes and, if it is reachable, their slice archive.

    Args:
        prior: a `SlicePrior`, whose decoder can encode.
        archive: the slice archive of the decoder, or None.
        make_scorer: returns a `Scorer` of the prior, which takes a while, or None.
    """

    def __init__(
        self,
        prior: Any,
        archive: SliceArchive | None = None,
        make_scorer: Callable[[], Any] | None = None,
    ):
        self._make_scorer: Any = make_scorer
        self._scorer: Any = None
        self._lock = threading.Lock()
        self.prior, self.decoder, self.archive = prior, prior.decoder, archive
        self.crop = CropBox(*self.decoder.crop)
        self.nearest = NearestTrain(archive) if archive else None
        self.pixels = math.prod(self.decoder.image_shape)

    def warm_up(self) -> None:
        """Compute everything once, so that the first click does not wait for compilations."""
        first = self.prior.model.condition_variables[:1]
        conditions = {item.name: (*item.categories, item.low)[0] for item in first}
        for top_p, guidance in itertools.product((None, 0.9), (1.0, 2.0) if first else (1.0,)):
            options = {"top_p": top_p, "guidance": guidance, "conditions": conditions}
            *_, sampling = self.sample(1, 0.5, **options)
        image = to_uint8(self.decode(sampling.codes)[0])
        next(self.inpaint(image, np.indices(image.shape)[0] < len(image) // 2, 1, 0))

    def sample(
        self, count: int, position: float | tuple[float, ...], **options: Any
    ) -> Iterator[Sampling]:
        """Sample slices, and yield them as they grow.

        Args:
            count: number of slices, at most `BATCH`.
            position: slice position, or several; clipped to the trained range.
            **options: `temperature`, `top_p`, `guidance`, `seed`, `conditions` and `shared_noise`
                of `SlicePrior.partial_grids`.
        """
        positions = np.clip(np.atleast_1d(position), *self.prior.provenance.positions)
        options = {"batch_size": BATCH, "rows": self._step, **options}
        for grids in self.prior.partial_grids(count, positions.tolist(), **options):
            codes, is_sampled = grids["codes"], grids["codes"] >= 0
            images = self.decode(np.maximum(codes, 0))
            pairs = zip(images, is_sampled, strict=True)
            shown = np.stack([partial(*pair, self.crop) for pair in pairs])
            share = float(is_sampled[0].mean())
            yield Sampling(shown, codes, grids["log_prob"], grids["positions"], share)

    @property
    def _step(self) -> int:
        return -(-self.prior.model.scan_shape[0] // STEPS)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes (n, r, c) to images, float32 of shape (n, rows, cols)."""
        return np.asarray(self.decoder.decode_codes(codes))[..., 0]

    def nearest_slices(self, sampling: Sampling) -> list[tuple[np.ndarray, str]]:
        """Return the training slice nearest to each sample, cut to the codes, and a caption."""
        if self.nearest is None:
            return []
        images = self.decode(sampling.codes)
        rows, scores = self.nearest(images)
        slices = self.crop.cut(self.nearest.archive.load(rows)[..., 0])
        ids = [self.nearest.archive.index[row].slice_id for row in rows]
        captions = [f"SSIM {score:.3f}, {name}" for name, score in zip(ids, scores, strict=True)]
        return list(zip(slices, captions, strict=True))

    @property
    def example_split(self) -> str:
        """The split of the examples, whose slices no model was trained on; empty without any."""
        counts = self.archive.counts if self.archive else {}
        splits = (name for name in ("test", "validate") if counts.get(name, {}).get("slices"))
        return next(splits, "")

    def example(self, seed: int) -> Upload:
        """Return a slice of the archive that no model was trained on.

        Raises:
            InputError: if the archive is not reachable.
        """
        if self.archive is None or not self.example_split:
            raise InputError("The slice archive of this run is not reachable. Upload an image.")
        row = np.random.default_rng(seed).choice(self.archive.indices(self.example_split))
        return Upload(self.archive.index[row].slice_id, self.archive.images[row][None].copy())

    def reconstruct(self, image: np.ndarray) -> Reconstruction:
        """Encode and decode a slice, uint8 of shape (rows, cols)."""
        original = image / np.float32(255)
        return self.compare(original, self.encode(original))

    def encode(self, original: np.ndarray) -> np.ndarray:
        """Encode a slice, float32 of shape (rows, cols), to codes, int32 of shape (r, c)."""
        return np.asarray(self.decoder.encode_to_codes(original[None, ..., None]))[0]

    def compare(self, original: np.ndarray, codes: np.ndarray) -> Reconstruction:
        """Decode codes, int of shape (r, c), and score the image against the original."""
        image = self.decode(codes[None])[0]
        scores = reconstruction_scores(original, image)
        return Reconstruction(original, codes, image, similarity_map(original, image), scores)

    def edited(self, codes: np.ndarray, cell: tuple[int, int], code: float) -> np.ndarray:
        """Return codes with one of them replaced.

        Raises:
            InputError: if `code` is not in the codebook or `cell` not in the grid.
        """
        limits = (*codes.shape, self.prior.model.num_embeddings)
        for name, value, limit in zip(("row", "col", "code"), (*cell, code), limits, strict=True):
            if value != int(value) or not 0 <= value < limit:
                raise InputError(
                    f"`{name}` must be a whole number from 0 to {limit - 1}. "
                    f"Received: {name}={value:g}."
                )
        changed = codes.copy()
        changed[int(cell[0]), int(cell[1])] = int(code)
        return changed

    def prior_bits(self, codes: np.ndarray) -> tuple[float, float]:
        """Return the bits of a code grid under the prior, and its likeliest position.

        The position is the likeliest of `BATCH` ones that spread over the trained range; the
        conditions are unknown.
        """
        low, high = self.prior.provenance.positions
        positions = np.linspace(low, high, BATCH)
        grids = np.repeat(codes[None], BATCH, axis=0)
        inputs = self.prior.model.with_conditions(positions)
        log_prob = np.asarray(self.prior.model.log_prob(grids, inputs))
        nats = -log_prob.sum(axis=(1, 2), dtype="float64")
        return float(nats.min() / math.log(2)), float(positions[nats.argmin()])

    @property
    def can_score(self) -> bool:
        """Whether there are validation slices to compare with."""
        return self._make_scorer is not None

    @property
    def has_reference(self) -> bool:
        """Whether the validation slices are scored."""
        return self._scorer is not None

    def surprise(self, image: np.ndarray) -> SurpriseMap:
        """Map the surprise of a slice, uint8 of shape (rows, cols)."""
        with self._lock:  # several windows score the validation slices once
            self._scorer = self._scorer or self._make_scorer()
        original = image / np.float32(255)
        position = self.prior_bits(self.encode(original))[1]
        inputs = self.prior.model.with_conditions(np.array([position]))
        scored = self._scorer([original], inputs, silent=True)
        cut, values = self.crop.cut(np.stack([original, self._scorer.maps(scored.surprise)[0]]))
        highest = 2 * self._scorer.threshold
        return SurpriseMap(
            cut, values, highest, float(scored.bits[0]), float(scored.percentiles[0]), position
        )

    def avif(self, original: np.ndarray) -> tuple[np.ndarray, float, dict[str, float]]:
        """Encode a slice as AVIF at the raw rate of its codes.

        Returns:
            The image, float32 of shape (rows, cols); its bits per pixel; and its scores.
        """
        quality = search_quality([original], "avif", self.decoder.bits_per_pixel_raw, silent=True)
        rate, (image,) = codec_rate([original], "avif", quality)
        return image, rate, reconstruction_scores(original, image)

    def inpaint(
        self, image: np.ndarray, hidden: np.ndarray, count: int, seed: int
    ) -> Iterator[np.ndarray]:
        """Inpaint the hidden part of a slice.

        Args:
            image: uint8 array of shape (rows, cols).
            hidden: bool array of the same shape.
            count: number of inpainted slices.
            seed: seed of the first; each next one has the next seed.

        Yields:
            The inpainted slices so far, float32 of shape (n, rows, cols), cut to what codes cover.

        Raises:
            InputError: if nothing that codes cover is hidden.
        """
        if not hidden.any():
            raise InputError("Nothing is painted. Paint over the part to fill in.")
        visible = np.where(hidden, 0, image) / np.float32(255)
        position = self.prior_bits(self.encode(visible))[1]
        inpainted = []
        for index in range(count):
            options = {"seed": seed + index, "batch_size": BATCH}
            (one,) = self.prior.inpaint(image, hidden, position, **options)[..., 0]
            inpainted.append(one)
            yield self.crop.cut(np.stack(inpainted))
