"""Cached exact sampling: each activation of the PixelCNN is computed once.

One compiled loop advances the vertical stack a row at a time and the horizontal stack a code at a
time. The codes equal those of one full forward pass per code, unless a rounding error in the last
bits crosses a threshold of the sampling.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from brainslices.compilation import compiled
from brainslices.data.batches import padded_batches
from brainslices.errors import InputError
from brainslices.progress import bar
from brainslices.types import Tensor
from pixelcnn.logits import (
    append_unconditional,
    apply_guidance,
    check_sampling_options,
    filter_logits,
    sample_from_logits,
)
from pixelcnn.model import PixelCNN
from pixelcnn.row_cache import RowCache, start_state

__all__ = ["BATCH_SIZE", "MASKED", "Sampler", "uniform_noise"]

# Stands for a masked code.
MASKED = -1
BATCH_SIZE = 16


def uniform_noise(seed: int, samples: Sequence[int], grid_shape: tuple[int, int]) -> np.ndarray:
    """Return the noise that fixes each sample, whichever batch it is in.

    Args:
        seed: seed of all samples.
        samples: indices of the samples.
        grid_shape: (r, c).

    Returns:
        float32 array of shape (samples, r, c), uniform in [0, 1).

    Example:
        >>> whole, part = uniform_noise(0, range(3), (2, 2)), uniform_noise(0, [2], (2, 2))
        >>> bool((whole[2] == part[0]).all())
        True
    """
    return np.stack(
        [np.random.default_rng([seed, k]).random(grid_shape, dtype="float32") for k in samples]
    )


class Sampler:
    """Sample code grids from a trained PixelCNN; compiled once per batch size.

    `with_limits` returns a sampler of another temperature, top-p and guidance; each of top-p and
    guidance is compiled once more when it is first used.

    Args:
        model: a built `PixelCNN`.
        temperature: positive float, divides the logits.
        top_k: int from 1 to num_embeddings, or None.
        top_p: float in (0, 1], or None.
        guidance: weight of classifier-free guidance, as in `apply_guidance`; 1 for none. Other
            weights need a model with conditions, and sample at half the speed.

    Call arguments:
        position: float array of shape (batch,), in [0, 1], or with conditions.
        uniform: float array of shape (batch, r, c), uniform noise in [0, 1).
        observed: int array of shape (batch, r, c), codes that are fixed, `MASKED` elsewhere; None
            samples all codes. A sampled code does not depend on observed codes that follow it in
            scan order.

    Returns:
        `{"codes", "log_prob"}`: int32 array of shape (batch, r, c); and float32 array of the same
        shape, the model's log-probability (nats) of each code given the codes before it, without
        guidance, temperature, top-k and top-p.

    Raises:
        InputError: if `temperature`, `top_k`, `top_p` or `guidance` is out of its range, or
            `observed` holds invalid codes.
    """

    def __init__(
        self,
        model: PixelCNN,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
    ):
        check_sampling_options(model, temperature, top_k, top_p, guidance)
        self.model, self.guidance = model, guidance
        self.limits: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        self._compiled_rows = compiled(self._sample_rows, model)

    def with_limits(
        self, temperature: float = 1.0, top_p: float | None = None, guidance: float = 1.0
    ) -> "Sampler":
        """Return a sampler that differs by these limits alone and shares what is compiled.

        Raises:
            InputError: if a limit is out of its range.
        """
        limits = {**self.limits, "temperature": temperature, "top_p": top_p}
        check_sampling_options(self.model, **limits, guidance=guidance)
        sampler = copy.copy(self)
        sampler.limits, sampler.guidance = limits, guidance
        return sampler

    def __call__(
        self, position: np.ndarray, uniform: np.ndarray, observed: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Sample a batch of grids."""
        (grids,) = self.partial_grids(position, uniform, observed, self.model.scan_shape[0])
        return grids

    def partial_grids(
        self,
        position: np.ndarray,
        uniform: np.ndarray,
        observed: np.ndarray | None = None,
        rows: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Sample a batch of grids, and yield them after every few rows of the scan.

        Args:
            position: as in a call.
            uniform: as in a call.
            observed: as in a call.
            rows: rows of the scan between two results.

        Yields:
            What a call returns; codes that are not sampled yet are `MASKED`.

        Raises:
            InputError: if `observed` holds invalid codes, a grid has another shape, or a position
                is not finite.
        """
        if observed is None:
            observed = np.full(np.shape(uniform), MASKED)
        self._check_inputs(position, uniform, observed)
        position = np.asarray(position, "float32")
        if self.guidance != 1 and position.ndim == 1:
            position = self.model.with_conditions(position)
        inputs = position, np.asarray(uniform, "float32"), np.asarray(observed, "int32")
        state = self._start(len(position))
        for first in range(0, self.model.scan_shape[0], rows):
            state, grids = self._advance(inputs, state, first, first + rows)
            codes, log_prob = map(np.asarray, grids)
            yield {"codes": codes, "log_prob": log_prob}

    def _check_inputs(self, position, uniform, observed):
        expected = (len(position), *self.model.grid_shape)
        for name, grids in (("uniform", uniform), ("observed", observed)):
            if np.shape(grids) != expected:
                raise InputError(
                    f"`{name}` must have shape {expected}. Received: shape {np.shape(grids)}."
                )
        if not np.isfinite(position).all():
            raise InputError(f"`position` must be finite. Received: {position}.")
        low, high = np.min(observed), np.max(observed)
        if low < MASKED or high >= self.model.num_embeddings:
            raise InputError(
                f"`observed` must hold codes below {self.model.num_embeddings}, or {MASKED} where "
                f"masked. Received: values from {low} to {high}."
            )

    def sample_grids(
        self, position: Tensor, uniform: Tensor, observed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample a batch of grids from tensors, also inside a graph.

        Args:
            position: as in a call.
            uniform: as in a call.
            observed: as in a call.

        Returns:
            The codes and their log-probabilities, as in a call.
        """
        inputs, rows = (position, uniform, observed), self.model.scan_shape[0]
        return self._advance(inputs, self._start(position.shape[0]), 0, rows)[1]

    def _start(self, batch):
        """Return the state before the first row: of the vertical stack, and the grids."""
        shape = (batch, *self.model.scan_shape)
        grids = (ops.full(shape, MASKED, "int32"), ops.zeros(shape, "float32"))
        return start_state(self.model, batch if self.guidance == 1 else 2 * batch), grids

    def _advance(self, inputs, state, first, last):
        """Sample rows of the scan; return the new state, and the grids in their own order."""
        # As arrays: numbers would be compiled as constants.
        span = np.array([first, min(last, self.model.scan_shape[0])], "int32")
        limits = {
            name: None if self.limits[name] is None else np.array(self.limits[name], "float32")
            for name in ("temperature", "top_p")
        }
        guidance = None if self.guidance == 1 else np.array(self.guidance, "float32")
        state = self._compiled_rows(*inputs, span, limits, guidance, state)
        return state, tuple(self.model.from_scan(grid) for grid in state[1])

    def batches(
        self,
        positions: np.ndarray,
        seed: int,
        batch_size: int,
        observed: np.ndarray | None = None,
        noise_indices: np.ndarray | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Sample any number of grids, a batch at a time, with a progress bar.

        Args:
            positions: float array of shape (samples,), in [0, 1], or with conditions.
            seed: int; a sample depends on the seed, its index and its position, never on the
                batch size.
            batch_size: int, grids at a time.
            observed: int array of shape (samples, r, c) as in a call, or None.
            noise_indices: int array of shape (samples,), the index whose noise each sample takes;
                None for its own index.

        Yields:
            What a call returns, for one batch after the other.
        """
        count, shape = len(positions), self.model.grid_shape
        noise_indices = np.arange(count) if noise_indices is None else noise_indices
        with bar(total=count, description="sampling", unit="slices") as progress_bar:
            for rows, size in padded_batches(count, min(batch_size, count)):
                samples = self(
                    np.asarray(positions)[rows],
                    uniform_noise(seed, noise_indices[rows].tolist(), shape),
                    None if observed is None else observed[rows],
                )
                progress_bar.update(size)
                yield {name: values[:size] for name, values in samples.items()}

    def _sample_rows(self, position, uniform, observed, span, limits, guidance, state):
        """Sample the rows of the scan from `span[0]` up to `span[1]`; return the new state."""
        model = self.model
        cache = RowCache(model, position if guidance is None else append_unconditional(position))
        uniform, observed = model.to_scan(uniform), model.to_scan(observed)

        def sample_row(row, loop_state):
            vertical_state, grids = loop_state
            values, vertical_state = self._sample_row(
                cache,
                row,
                limits,
                guidance,
                vertical_state,
                ops.take(uniform, row, axis=1),
                ops.take(observed, row, axis=1),
            )
            grids = tuple(
                ops.slice_update(grid, [0, row, 0], value[:, None])
                for grid, value in zip(grids, values, strict=True)
            )
            return vertical_state, grids

        return ops.fori_loop(span[0], span[1], sample_row, state)

    def _sample_row(self, cache, row, limits, guidance, vertical_state, uniform, observed):
        """Return the codes and log-probabilities of a row, (batch, cols), and the new state."""

        def for_cache(codes):  # once more for the unknown conditions
            return codes if guidance is None else ops.concatenate([codes, codes])

        from_vertical, vertical_state = cache.advance_vertical_stack(row, vertical_state)

        def sample_code(col, loop_state):
            row_state, codes, log_prob = loop_state
            cell_input = ops.take(from_vertical, col, axis=2)
            logits, row_state = cache.advance_horizontal_stack(row, col, cell_input, row_state)
            noise = ops.take(uniform, col, axis=1)
            guided = logits if guidance is None else apply_guidance(logits, guidance)
            filtered = filter_logits(guided, top_k=self.limits["top_k"], **limits)
            sampled = sample_from_logits(filtered, noise)
            fixed = ops.take(observed, col, axis=1)
            code = ops.where(fixed == MASKED, sampled, fixed)
            nats = self.model.nats(code, logits[: ops.shape(code)[0]])
            is_here = ops.arange(cache.cols) == col
            return (
                cache.append_code(row_state, for_cache(code)),
                ops.where(is_here, code[:, None], codes),
                ops.where(is_here, -nats[:, None], log_prob),
            )

        empty = (ops.zeros_like(observed), ops.zeros_like(uniform))
        loop_state = (cache.start_row(), *empty)
        _, codes, log_prob = ops.fori_loop(0, cache.cols, sample_code, loop_state)
        return (codes, log_prob), cache.append_row(vertical_state, for_cache(codes))
