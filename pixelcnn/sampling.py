"""Cached exact sampling: every activation of the PixelCNN is computed once.

The vertical stack advances a row at a time and the horizontal one a code at a time, inside one
compiled loop; the codes are those that one full forward pass for each code would give.
"""

import keras
import numpy as np
from keras import ops

from brainslices.errors import InputError
from brainslices.progress import bar
from pixelcnn.layers import gate

__all__ = [
    "UNKNOWN",
    "RowCache",
    "Sampler",
    "compiled",
    "complete",
    "draw",
    "likeliest_position",
    "restrict",
    "uniform_noise",
]

UNKNOWN = -1
# Grids drawn for each completion asked for, and grids drawn at a time.
CANDIDATES, BATCH_SIZE = 8, 16
# The largest share of a float32 sum that is still below the sum after rounding.
LARGEST_UNIFORM = 1 - 2**-22


def uniform_noise(seed: int, samples: range, grid_shape: tuple[int, int]) -> np.ndarray:
    """The chance of some samples: each has its own, whatever batch it comes in.

    Args:
        seed: of all the samples.
        samples: numbers of the samples.
        grid_shape: (r, c).

    Returns:
        float32 array of shape (samples, r, c), uniform in [0, 1).
    """
    return np.stack(
        [np.random.default_rng([seed, k]).random(grid_shape, dtype="float32") for k in samples]
    )


def restrict(logits, temperature=1.0, top_k=None, top_p=None):
    """Logits of what may be drawn, -inf for what may not.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings).
        temperature: positive float or scalar tensor; towards 0 the likeliest code is drawn always.
        top_k: int, how many of the likeliest codes may be drawn; None for all.
        top_p: float or scalar tensor in (0, 1]: only the likeliest codes may be drawn that reach
            this probability together; None for all.

    Returns:
        float32 tensor of the same shape, at most 0.

    Reference:
        Holtzman et al. 2020, arXiv 1904.09751, section 3.1 (top-p) and 3.2 (top-k, temperature).
    """
    # At most 0, so that no temperature overflows.
    logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
    if top_k is not None:
        least = ops.top_k(logits, top_k)[0][:, -1:]
        logits = ops.where(logits < least, -np.inf, logits)
    if top_p is not None:
        logits = ops.where(_outside_nucleus(logits, top_p), -np.inf, logits)
    return logits


def draw(logits, uniform):
    """One code for each row of logits, by inversion of the cumulative probabilities.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings), at most 0, as `restrict` has it.
        uniform: float32 tensor of shape (batch,), in [0, 1): all of the chance there is.

    Returns:
        int32 tensor of shape (batch,).
    """
    weights = ops.exp(logits)
    cumulative = ops.cumsum(weights, axis=-1)
    possible = weights > 0
    total = ops.max(ops.where(possible, cumulative, 0.0), axis=-1)
    threshold = ops.minimum(uniform, LARGEST_UNIFORM) * total
    reached = ops.logical_and(cumulative > threshold[:, None], possible)
    return ops.cast(ops.argmax(ops.cast(reached, "int32"), axis=-1), "int32")


def _outside_nucleus(logits, top_p):
    """Whether the codes likelier than each already reach `top_p` together."""
    ordered = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    probabilities = ops.softmax(ordered, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    least = ops.min(ops.where(before < top_p, ordered, np.inf), axis=-1, keepdims=True)
    return logits < least


class RowCache:
    """The PixelCNN cut into what a row needs and what a code needs, for a batch of one size.

    All in scan order. Nothing is kept here but the weights as matrices and the condition; what the
    steps remember goes in and out of them.

    Args:
        model: a built `PixelCNN`.
        position: float tensor of shape (batch,).
    """

    def __init__(self, model, position):
        self.model, self.batch = model, position.shape[0]
        self.rows, self.cols = model.scan_shape
        self.dtype = model.compute_dtype
        self.condition = model.condition(position)
        self.first = model.first_horizontal.matrix
        self.blocks = [_matrices(block) for block in model.blocks]

    def start(self):
        """Memory before the first row: the last rows that each vertical layer has seen."""
        layers = [self.model.first_vertical] + [block.vertical for block in self.model.blocks]
        channels = self.model.config.channels
        return tuple(self._zeros(layer.above, self.cols, channels) for layer in layers)

    def start_row(self):
        """Memory before the first code of a row.

        The last features that each horizontal layer has seen, and the keys and values of each
        attention.
        """
        layers = [self.model.first_horizontal] + [block.horizontal for block in self.model.blocks]
        channels = self.model.config.channels
        left = tuple(self._zeros(layer.mask.shape[1] - 1, channels) for layer in layers)
        attended = tuple((self._zeros(self.cols, channels),) * 2 for _ in self.model.attentions)
        return left, attended

    def _zeros(self, *shape):
        return ops.zeros((self.batch, *shape), self.dtype)

    def vertical(self, row, above):
        """Advance the vertical stack by a row.

        Args:
            row: int scalar tensor, number of the row.
            above: what each vertical layer has seen in the rows before.

        Returns:
            What the row gives to the horizontal stack, (cols, layers, batch, 2 * channels); and
            the new `above`, but for the first layer's, whose codes are still to come.
        """
        condition = ops.take(self.condition, row, axis=1)[:, None]
        unseen = self._zeros(1, self.cols, self.model.config.channels)
        features = self.model.first_vertical.slide(ops.concatenate([above[0], unseen], axis=1))
        given, seen = [], [above[0]]
        for block, matrices, before in zip(self.model.blocks, self.blocks, above[1:], strict=True):
            rows = ops.concatenate([before, features], axis=1)
            wide = block.vertical.slide(rows) + block.from_condition(condition)
            given.append((block.from_vertical(wide) + matrices["bias"])[:, 0])
            seen.append(rows[:, 1:])
            features = features + gate(wide)
        return ops.transpose(ops.stack(given), (2, 0, 1, 3)), tuple(seen)

    def logits(self, row, col, given, left, attended):
        """Advance the horizontal stack by a code.

        Args:
            row, col: int scalar tensors, the code's place.
            given: what the vertical stack gives to this place, (layers, batch, 2 * channels).
            left: what each horizontal layer has seen on the left; the first layer's codes embedded.
            attended: keys and values of this row, for each attention.

        Returns:
            float32 logits (batch, num_embeddings); the new `left`, but for the first layer's, whose
            code is still to come; and the new `attended`.
        """
        condition = ops.take(ops.take(self.condition, row, axis=1), col, axis=1)
        width = left[0].shape[1] * left[0].shape[2]
        features = ops.reshape(left[0], (-1, width)) @ self.first[:width]
        features = features + ops.cast(self.model.first_horizontal.bias, self.dtype)
        seen, skips, kept = [left[0]], 0.0, []
        for number, (matrices, before) in enumerate(zip(self.blocks, left[1:], strict=True)):
            window = ops.concatenate([before, features[:, None]], axis=1)
            flat = ops.reshape(window, (self.batch, -1))
            gated = gate(flat @ matrices["kernel"] + given[number])
            skip, residual = ops.split(gated @ matrices["out"] + matrices["out_bias"], 2, axis=-1)
            seen.append(window[:, 1:])
            features, skips = features + residual, skips + skip
            if str(number) in self.model.attentions:
                attention = self.model.attentions[str(number)]
                query, *new = (part[:, None] for part in attention.project(features, condition))
                kept.append(
                    tuple(
                        ops.slice_update(old, [0, col, 0], one)
                        for old, one in zip(attended[len(kept)], new, strict=True)
                    )
                )
                seen_codes = ops.arange(self.cols) <= col
                features += attention.attend(query, *kept[-1], seen_codes)[:, 0]
        return self.model.head(skips, features), tuple(seen), tuple(kept)

    def see(self, left, code):
        """`left` once the code itself, int (batch,), is known."""
        embedded = self.model.embedding(code[:, None])
        return ops.concatenate([left[0], embedded], axis=1)[:, 1:], *left[1:]

    def see_row(self, above, codes):
        """`above` once the row's codes, int (batch, cols), are known."""
        embedded = self.model.embedding(codes)[:, None]
        return ops.concatenate([above[0], embedded], axis=1)[:, 1:], *above[1:]


def _matrices(block):
    """The weights of a block's horizontal half, ready to be multiplied with flat windows."""
    dtype = block.compute_dtype
    values = {
        "kernel": block.horizontal.matrix,
        "bias": block.horizontal.bias,
        "out": ops.concatenate([block.skip.kernel, block.residual.kernel], axis=1),
        "out_bias": ops.concatenate([block.skip.bias, block.residual.bias]),
    }
    return {name: ops.cast(value, dtype) for name, value in values.items()}


class Sampler:
    """Draws code grids from a trained PixelCNN; compiled once for each batch size.

    Args:
        model: a built `PixelCNN`.
        temperature: positive float, by which the logits are divided.
        top_k: int from 1 to num_embeddings, or None.
        top_p: float in (0, 1], or None.

    Call arguments:
        position: float array of shape (batch,), in [0, 1].
        uniform: float array of shape (batch, r, c), in [0, 1): all of the chance there is.
        given: int array of shape (batch, r, c), codes that are kept; `UNKNOWN` elsewhere. None for
            grids that are all new. Codes given after an unknown one in scan order do not change it.

    Returns:
        `{"codes", "log_prob"}`: int32 array of shape (batch, r, c), and float32 of the same shape,
        the model's own log-probability (nats) of each code given those before it.

    Raises:
        InputError: if temperature, top_k or top_p is out of its range.
    """

    def __init__(self, model, temperature=1.0, top_k=None, top_p=None):
        if not 0 < temperature < np.inf:
            raise InputError(
                f"`temperature` must be a positive number. Received: temperature={temperature}."
            )
        if top_k is not None and not 1 <= top_k <= model.num_embeddings:
            raise InputError(
                f"`top_k` must be from 1 to {model.num_embeddings}, the size of the codebook. "
                f"Received: top_k={top_k}."
            )
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"`top_p` must be above 0 and at most 1. Received: top_p={top_p}.")
        self.model = model
        self.limits = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.loop = compiled(self._draw_all, model)

    def __call__(self, position, uniform, given=None):
        if given is None:
            given = np.full(np.shape(uniform), UNKNOWN)
        codes, log_prob = self.loop(
            np.asarray(position, "float32"),
            np.asarray(uniform, "float32"),
            np.asarray(given, "int32"),
        )
        return {"codes": np.asarray(codes), "log_prob": np.asarray(log_prob)}

    def batches(self, positions, seed, batch_size, given=None):
        """Draw any number of grids, a batch at a time, with a progress bar.

        Args:
            positions: float array of shape (samples,), in [0, 1].
            seed: int; a sample depends on it and on its own number alone, not on the batches.
            batch_size: int, grids drawn at a time.
            given: int array of shape (samples, r, c) as above, or None.

        Yields:
            What a call returns, for one batch after the other.
        """
        count, shape = len(positions), self.model.grid_shape
        with bar(total=count, description="sampling", unit="slices") as shown:
            for start in range(0, count, batch_size):
                # The last batch is filled up: another size would be compiled anew.
                rows = np.minimum(np.arange(start, start + min(batch_size, count)), count - 1)
                drawn = self(
                    np.asarray(positions)[rows],
                    uniform_noise(seed, rows.tolist(), shape),
                    None if given is None else given[rows],
                )
                wanted = min(batch_size, count - start)
                shown.update(wanted)
                yield {name: values[:wanted] for name, values in drawn.items()}

    def _draw_all(self, position, uniform, given):
        model, cache = self.model, RowCache(self.model, position)
        uniform, given = model.to_scan(uniform), model.to_scan(given)

        def draw_row(row, memory):
            above, results = memory
            chance, known = (ops.take(values, row, axis=1) for values in (uniform, given))
            above, found = self._draw_row(cache, row, above, chance, known)
            results = (
                ops.slice_update(old, [0, row, 0], new[:, None])
                for old, new in zip(results, found, strict=True)
            )
            return above, tuple(results)

        results = (ops.zeros_like(given), ops.zeros_like(uniform))
        _, results = ops.fori_loop(0, cache.rows, draw_row, (cache.start(), results))
        return tuple(model.from_scan(values) for values in results)

    def _draw_row(self, cache, row, above, uniform, given):
        """Codes and log-probabilities of one row, (batch, cols), and the new `above`."""
        from_above, above = cache.vertical(row, above)

        def draw_code(col, memory):
            (left, attended), codes, log_prob = memory
            logits, left, attended = cache.logits(
                row, col, ops.take(from_above, col, axis=0), left, attended
            )
            drawn = draw(restrict(logits, **self.limits), ops.take(uniform, col, axis=1))
            known = ops.take(given, col, axis=1)
            code = ops.where(known == UNKNOWN, drawn, known)
            nats = ops.take_along_axis(ops.log_softmax(logits), code[:, None], axis=1)
            here = ops.arange(cache.cols) == col
            return (
                (cache.see(left, code), attended),
                ops.where(here, code[:, None], codes),
                ops.where(here, nats, log_prob),
            )

        empty = (ops.zeros_like(given), ops.zeros_like(uniform))
        _, *found = ops.fori_loop(0, cache.cols, draw_code, (cache.start_row(), *empty))
        return cache.see_row(above, found[0]), found


def compiled(function, model):
    """One graph of the backend, with the model's weights as they are when it is called.

    Args:
        function: of tensors, calls the model.
        model: the model that it calls, built.

    Returns:
        A function of arrays or tensors.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import jax

    @jax.jit
    def stateless(weights, *arguments):
        with keras.StatelessScope(zip(model.variables, weights, strict=True)):
            return function(*arguments)

    return lambda *arguments: stateless([each.value for each in model.variables], *arguments)


def complete(sampler: Sampler, known: np.ndarray, position: float, count: int, seed: int) -> dict:
    """Complete a partly known code grid.

    Codes are drawn in scan order, so those known further on have no say in a draw. So
    `CANDIDATES` times as many grids are drawn, and those asked for are chosen from them with a
    chance in proportion to the probability that each gives to the known codes: the more
    candidates, the nearer this is to the exact conditional distribution.

    Args:
        sampler: draws the grids.
        known: int array of shape (r, c), codes, or `UNKNOWN`.
        position: the slice's position, in [0, 1].
        count: number of completions.
        seed: int.

    Returns:
        As a call of `Sampler`, for `count` grids.

    Reference:
        Rubin 1987, sampling/importance resampling; without replacement, so that no two completions
        are one.
    """
    drawn, evidence = _candidates(sampler, known, np.full(count * CANDIDATES, position), seed)
    chance = np.random.default_rng([seed, len(evidence)]).gumbel(size=len(evidence))
    rows = np.argsort(-(evidence + chance))[:count]
    return {name: values[rows] for name, values in drawn.items()}


def likeliest_position(
    sampler: Sampler, known: np.ndarray, positions: np.ndarray, seed: int
) -> float:
    """The position in the head that gives the known codes of a grid the highest probability.

    Args:
        sampler: draws a completion for each position, under which the known codes are judged.
        known: int array of shape (r, c), codes, or `UNKNOWN`.
        positions: float array of shape (n,), the positions to choose from, in [0, 1].
        seed: int.
    """
    _, evidence = _candidates(sampler, known, positions, seed)
    return float(positions[np.argmax(evidence)])


def _candidates(sampler, known, positions, seed):
    """Grids with the known codes in them, and how likely (nats) each makes those codes."""
    given = np.broadcast_to(known, (len(positions), *known.shape))
    batches = list(sampler.batches(positions, seed, min(len(positions), BATCH_SIZE), given))
    drawn = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return drawn, np.where(known == UNKNOWN, 0, drawn["log_prob"]).sum(axis=(1, 2))
