"""Novel brain slices from a trained prior and the decoder of its codes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from brainslices.data.batches import in_batches
from brainslices.data.images import check_intensities
from brainslices.errors import InputError
from brainslices.resources import check_needed
from brainslices.runs.loading import load_model, with_policy
from brainslices.runs.run import Run
from brainslices.types import PathLike
from pixelcnn.conditions import expand_request, parse_request
from pixelcnn.config import SamplingConfig
from pixelcnn.generate import Samples, decode_batches, spread_positions
from pixelcnn.inpainting import CANDIDATES, inpaint_codes, most_likely_position
from pixelcnn.model import PixelCNN
from pixelcnn.provenance import Provenance, load_provenance
from pixelcnn.sampling import BATCH_SIZE, MASKED, Sampler, uniform_noise

__all__ = ["SlicePrior"]


class SlicePrior:
    """A prior over brain slices: a `PixelCNN` over codes, and the decoder of these codes.

    Use `from_run` to load a trained one.

    Args:
        model: a built `PixelCNN`.
        decoder: an object with `decode_codes(codes)`, which returns images in [0, 1]; such as a
            `VQVAE`. `inpaint` also needs its `inpainting(image, hidden)`, `log_prob` its
            `encode_to_codes(images)`.
        provenance: positions of the training slices and metadata of the prior.

    Example:
        >>> prior = SlicePrior.from_run("runs/prior")  # doctest: +SKIP
        >>> images = prior.sample(16, position=0.5, temperature=0.9, seed=0)  # doctest: +SKIP
        >>> images.shape  # doctest: +SKIP
        (16, 256, 256, 1)
        >>> inpainted = prior.inpaint(images[0], count=4)  # doctest: +SKIP
        >>> nats = -prior.log_prob(images, 0.5)  # doctest: +SKIP
    """

    def __init__(self, model: PixelCNN, decoder: Any, provenance: Provenance):
        self.model, self.decoder, self.provenance = model, decoder, provenance
        self._sampler = Sampler(model)

    @classmethod
    def from_run(cls, run: PathLike, decoder: Any = None) -> "SlicePrior":
        """Load the best epoch of a trained prior.

        Args:
            run: the run folder of `train_pixelcnn.py`.
            decoder: the VQ-VAE whose codes the prior models: a loaded model, or its run folder if
                that was moved. None loads it from the run folder that the prior's run names. A
                model of another precision is copied: it is used in float32, since half-precision
                codes would depend on the device and the batch.

        Raises:
            InputError: if one of the runs cannot be used, or the decoder comes from another run
                than the one that encoded the prior's training data.
        """
        run = Run(run)
        model = PixelCNN.from_run(run)
        if decoder is None or isinstance(decoder, str | os.PathLike):
            provenance = load_provenance(run, vqvae=decoder)
            decoder = load_model(provenance.run, "vqvae", "float32")
        else:
            provenance = load_provenance(run, decoder=decoder)
            if isinstance(decoder, keras.Model):
                decoder = with_policy(decoder, "float32")
        return cls(model, decoder, provenance)

    def sample(
        self,
        count: int,
        position: float | Sequence[float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        conditions: Mapping[str, object] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Sample novel slices, the same as `scripts/sample.py` with the same arguments.

        Args:
            count: number of slices.
            position: slice position from 0 (lowest) to 1 (highest), or several that the slices
                take in turn; None spreads the slices evenly over the trained range.
            temperature: divides the logits of the prior.
            seed: a sample depends on the seed, its index, its position and the conditions only.
            conditions: name -> one value, of any subset of the prior's conditions, such as
                `{"age": 80, "sex": "F"}`; the others are unknown.
            **options: `top_k`, `top_p`, `guidance` and `batch_size` of `SamplingConfig`.

        Returns:
            float32 array of shape (count, rows, cols, 1), in [0, 1], ordered by position.

        Raises:
            InputError: if an argument is out of its range.
        """
        self.model.encode_conditions(conditions)  # refuses several values of one
        options |= {"temperature": temperature, "seed": seed, "condition": _as_texts(conditions)}
        sampling = SamplingConfig(count, _as_tuple(position), **options)
        return _images(self.samples(sampling))

    def samples(self, sampling: SamplingConfig, per_position: int = 1) -> Samples:
        """Sample as `sample` does, but lazily; return the codes and log-probabilities too.

        Args:
            sampling: number, positions and options of the slices.
            per_position: least number of slices at a position, if `sampling` names no positions.

        Raises:
            InputError: as `sample`.
        """
        requests = expand_request(self.model.condition_variables, sampling.condition)
        self._check_memory(sampling, sampling.count * len(requests))
        positions = spread_positions(
            sampling.count, self.provenance.positions, sampling.position, per_position
        )
        inputs = [self.model.with_conditions(positions, request) for request in requests.values()]
        # One noise for all values of a condition, so that nothing else changes along them.
        noise_indices = np.tile(np.arange(sampling.count), len(requests))
        batches = self._get_sampler(sampling).batches(
            np.concatenate(inputs), sampling.seed, sampling.batch_size, noise_indices=noise_indices
        )
        batches = decode_batches(batches, self.decoder.decode_codes)
        positions = np.tile(positions, len(requests))
        groups = tuple(label for label in requests if label)
        return Samples(batches, positions, self._metadata(sampling), groups=groups)

    def partial_grids(
        self,
        count: int,
        position: float | Sequence[float] | None = None,
        *,
        rows: int = 1,
        shared_noise: bool = False,
        conditions: Mapping[str, object] | None = None,
        **options: Any,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Sample one batch of code grids, lazily, with a result after every few rows of the scan.

        Args:
            count: number of grids; more than `batch_size` compile a sampler of their own size.
            position: as for `sample`.
            rows: rows of the scan between two results.
            shared_noise: give all grids the noise of the first, so that they differ only by their
                position.
            conditions: as for `sample`, one value each.
            **options: `temperature`, `seed` and the options of `sample`.

        Returns:
            Iterator over what `Sampler.partial_grids` yields, and `positions`, float32 of shape
            (count,).

        Raises:
            InputError: as `sample`.
        """
        options["condition"] = _as_texts(conditions)
        sampling = SamplingConfig(count, _as_tuple(position), **options)
        self._check_memory(sampling, count)
        trained = self.provenance.positions
        positions = spread_positions(count, trained, sampling.position)
        # Padded to the size that is compiled.
        padded = np.minimum(np.arange(max(sampling.batch_size, count)), count - 1)
        noise_indices = [0] * len(padded) if shared_noise else padded.tolist()
        noise = uniform_noise(sampling.seed, noise_indices, self.model.grid_shape)
        inputs = self.model.with_conditions(positions[padded], conditions)
        results = self._get_sampler(sampling).partial_grids(inputs, noise, rows=rows)
        return (
            {"positions": positions} | {name: grids[name][:count] for name in grids}
            for grids in results
        )

    def inpaint(
        self,
        image: np.ndarray,
        hidden: tuple[int, int, int, int] | np.ndarray | None = None,
        position: float | None = None,
        count: int = 1,
        seed: int = 0,
        conditions: Mapping[str, object] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Inpaint the hidden part of an image.

        Args:
            image: float array in [0, 1] or uint8 array, of shape (rows, cols) or (rows, cols, 1).
            hidden: (top, left, rows, cols) of the hidden part, in pixels; or a bool array of shape
                (rows, cols), true where hidden; None for the lower half.
            position: slice position; None estimates it by maximum likelihood.
            count: number of inpainted images.
            seed: seed of the samples.
            conditions: as for `sample`.
            **options: `temperature`, `top_k`, `top_p`, `guidance` and `batch_size` of
                `SamplingConfig`.

        Returns:
            float32 array of shape (count, rows, cols, 1), in [0, 1]: the image outside of the
            hidden part.

        Raises:
            InputError: if an argument is out of its range, or the decoder cannot encode.
        """
        options |= {"seed": seed, "condition": _as_texts(conditions)}
        sampling = SamplingConfig(count, _as_tuple(position), **options)
        return _images(self.inpainted(image, hidden, sampling))

    def inpainted(
        self,
        image: np.ndarray,
        hidden: tuple[int, int, int, int] | np.ndarray | None,
        sampling: SamplingConfig,
    ) -> Samples:
        """Inpaint as `inpaint` does; return the codes and log-probabilities too.

        Args:
            image: as for `inpaint`.
            hidden: as for `inpaint`.
            sampling: number, position and options of the inpainted images.

        Raises:
            InputError: as `inpaint`, or if `sampling` has several positions.
        """
        if len(sampling.position) > 1:
            raise InputError(
                "`position` must be a single slice position, or none, to inpaint an image. "
                f"Received: position={sampling.position}."
            )
        _check_decoder(self.decoder, "inpainting")
        self._check_memory(sampling, CANDIDATES * sampling.count)
        task, sampler = self.decoder.inpainting(image, hidden), self._get_sampler(sampling)
        observed, noise = task.observed_codes(MASKED), (sampling.seed, sampling.batch_size)
        conditions = parse_request(sampling.condition)
        candidates = self.model.with_conditions(self.provenance.candidate_positions, conditions)
        position = sampling.position or (
            most_likely_position(sampler, observed, candidates, *noise),
        )
        positions = spread_positions(sampling.count, self.provenance.positions, position)
        (inputs,) = self.model.with_conditions(np.array(position), conditions)
        batch = inpaint_codes(sampler, observed, inputs, sampling.count, *noise)
        metadata = self._metadata(sampling)
        metadata |= {"hidden": task.hidden, "position": float(positions[0])}
        starts = range(0, sampling.count, sampling.batch_size)
        parts = [slice(start, start + sampling.batch_size) for start in starts]
        batches = ({name: batch[name][part] for name in batch} for part in parts)
        return Samples(decode_batches(batches, task.decode), positions, metadata, task.image)

    def log_prob(
        self,
        images: np.ndarray,
        position: float | Sequence[float],
        conditions: Mapping[str, object] | None = None,
    ) -> np.ndarray:
        """Compute the log-probability of the codes of slices.

        Args:
            images: float array of shape (n, rows, cols, 1), in [0, 1].
            position: slice position in [0, 1], of all slices or of each.
            conditions: as for `sample`, of all slices.

        Returns:
            float32 array of shape (n,), nats per slice.

        Raises:
            InputError: if the images or positions are out of their range, or the decoder cannot
                encode.
        """
        _check_decoder(self.decoder, "encode_to_codes")
        images, positions = _check_slices(images, position)
        positions = self.model.with_conditions(positions, conditions)

        def log_prob(images, positions):
            return self.model.log_prob(self.decoder.encode_to_codes(images), positions)

        return in_batches(log_prob, BATCH_SIZE, None, images, positions).sum(axis=(1, 2))

    def _get_sampler(self, sampling):
        """Return the sampler of some options; it shares what the last one has compiled."""
        self._check_guidance(sampling)
        if self._sampler.limits["top_k"] != sampling.top_k:
            self._sampler = Sampler(self.model, top_k=sampling.top_k)
        return self._sampler.with_limits(sampling.temperature, sampling.top_p, sampling.guidance)

    def _check_memory(self, sampling, grids):
        """Refuse more grids than fit: codes (uint16), log-probabilities and noise (float32)."""
        codes = grids * int(np.prod(self.model.grid_shape))
        check_needed(f"count={sampling.count}", memory=codes * 10)

    def _check_guidance(self, sampling):
        """Refuse to guide towards nothing; a prior without conditions has a message of its own."""
        if sampling.guidance != 1 and self.model.condition_variables and not sampling.condition:
            names = ", ".join(variable.name for variable in self.model.condition_variables)
            raise InputError(
                f"`guidance` needs a `condition` to follow: the prior has {names}. "
                f"Received: guidance={sampling.guidance:g} and no condition."
            )

    def _metadata(self, sampling):
        names = ("seed", "temperature", "top_k", "top_p")
        metadata = {name: getattr(sampling, name) for name in names} | self.provenance.metadata
        if sampling.condition:
            metadata["conditions"] = parse_request(sampling.condition)
            metadata["guidance"] = sampling.guidance
        return metadata


def _as_tuple(position):
    if position is None:
        return ()
    return tuple(float(value) for value in np.atleast_1d(position))


def _as_texts(conditions):
    return tuple(f"{name}={value}" for name, value in (conditions or {}).items())


def _check_slices(images, position):
    """Return the images as float32, and a position for each."""
    images, positions = np.asarray(images, "float32"), np.asarray(position, "float32")
    if images.ndim != 4 or images.shape[-1] != 1 or not len(images):
        raise InputError(
            "`images` must have shape (n, rows, cols, 1) with n at least 1. "
            f"Received: images.shape={images.shape}."
        )
    check_intensities("images", images)
    if positions.shape not in ((), (len(images),)):
        raise InputError(
            "`position` must be one number, or one for each image. "
            f"Received: position.shape={positions.shape} for {len(images)} images."
        )
    if not (positions.min() >= 0 and positions.max() <= 1):
        raise InputError(f"`position` must be in [0, 1]. Received: position={position}.")
    return images, np.broadcast_to(positions, len(images))


def _images(samples):
    return np.concatenate([batch["images"] for batch in samples.batches])


def _check_decoder(decoder, method):
    if not hasattr(decoder, method):
        raise InputError(
            f"`decoder` must have a method `{method}`, as a VQVAE has. "
            f"Received: a {type(decoder).__name__}."
        )
