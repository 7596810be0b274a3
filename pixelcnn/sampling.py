"""Cached exact sampling: every activation of the PixelCNN is computed once.

The vertical stack advances a row at a time and the horizontal one a code at a time, inside one
compiled loop; the codes are those that one full forward pass for each code would give, as long as
no rounding of the last bits tips a draw.
"""

import keras
import numpy as np
from keras import ops

from brainslices.errors import InputError
from brainslices.progress import bar
from pixelcnn.layers import gate

__all__ = [
    "MASKED",
    "RowCache",
    "Sampler",
    "compiled",
    "complete",
    "draw",
    "most_likely_position",
    "filter_logits",
    "uniform_noise",
]

MASKED = -1
# Grids drawn for each completion asked for, and at a time where nobody says.
CANDIDATES, BATCH_SIZE = 8, 16
# A share of a float32 sum that is safely below the sum after rounding.
LARGEST_UNIFORM = 1 - 2**-22
# Lower temperatures draw the likeliest code all the same, and float32 takes some of them for 0.
MIN_TEMPERATURE = 1e-30


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


def filter_logits(logits, temperature=1.0, top_k=None, top_p=None):
    """Logits of what may be drawn, -inf for what may not.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings).
        temperature: positive float; towards 0 the likeliest code is drawn always.
        top_k: int, how many of the likeliest codes may be drawn, and those as likely as the last of
            them; None for all.
        top_p: float in (0, 1]: only the likeliest codes may be drawn that reach this probability
            together; None for all.

    Returns:
        float32 tensor of the same shape, at most 0.

    Reference:
        Holtzman et al. 2020, arXiv 1904.09751, section 3.1 (top-p) and 3.2 (top-k, temperature).
    """
    # At most 0, so that no temperature overflows.
    logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / max(temperature, MIN_TEMPERATURE)
    if top_k is not None:
        least = ops.top_k(logits, top_k)[0][:, -1:]
        logits = ops.where(logits < least, -np.inf, logits)
    if top_p is not None:
        logits = ops.where(_outside_nucleus(logits, top_p), -np.inf, logits)
    return logits


def draw(logits, uniform):
    """One code for each row of logits, by inversion of the cumulative probabilities.

    Args:
        logits: float32 tensor of shape (batch, num_embeddings), at most 0, as `filter_logits` has it.
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
    inside = ops.logical_or(before < top_p, before == 0)  # the likeliest always
    least = ops.min(ops.where(inside, ordered, np.inf), axis=-1, keepdims=True)
    return logits < least


class RowCache:
    """The PixelCNN cut into what a row needs and what a code needs, for a batch of one size.

    All in scan order. Nothing is kept here but the weights and the condition; what the steps
    remember goes in and out of them.

    A code's step is a hundred operations so small that starting them is what takes the time, so
    what blocks do alike is done once for all of them: what their kernels see left of the centre,
    the biases of their residual paths, and their skips.

    Args:
        model: a built `PixelCNN`.
        position: float tensor of shape (batch,).
    """

    def __init__(self, model, position):
        self.model, self.batch = model, position.shape[0]
        self.rows, self.cols = model.scan_shape
        self.channels, self.dtype = model.config.channels, model.compute_dtype
        self.condition = model.condition(position)
        first, blocks = model.first_horizontal, model.blocks
        self.first_left = self._cast(first.matrix[: -self.channels])
        # Kernel of each block: what lies left, all blocks together; and the centre.
        kernels = [self._cast(block.horizontal.matrix) for block in blocks]
        self.left = ops.stack([kernel[: -self.channels] for kernel in kernels])
        self.centre = [kernel[-self.channels :] for kernel in kernels]
        self.residual = [self._cast(block.residual.kernel) for block in blocks]
        self.skip = ops.concatenate([self._cast(block.skip.kernel) for block in blocks])
        self.skip_bias = self._cast(sum(block.skip.bias.value for block in blocks))
        # The running features of `logits` are without biases; whoever reads those before a block,
        # or after the last, adds what has gathered by then: (blocks + 1, 1, C).
        biases = [first.bias] + [block.residual.bias for block in blocks]
        gathered = ops.cumsum(ops.stack([bias.value for bias in biases]), axis=0)
        self.biases = self._cast(gathered)[:, None]

    def start(self):
        """Memory before the first row: the last rows that each vertical layer has seen.

        Tensors of shape (batch, rows above, cols, C), C the channels: for the first layer, which
        sees embedded codes, and for each block.
        """
        layers = [self.model.first_vertical] + [block.vertical for block in self.model.blocks]
        return tuple(self._zeros(layer.above, self.cols, self.channels) for layer in layers)

    def start_row(self):
        """Memory before the first code of a row.

        The last codes embedded, (batch, places * C); the last features that the blocks have seen,
        biases included, (blocks, batch, places * C); and the keys and values of each attention,
        (batch, cols, C) both. Places are those left of the centre of a kernel, side by side.
        """
        codes = self._zeros(self.first_left.shape[0])
        blocks, width = self.left.shape[:2]
        left = ops.zeros((blocks, self.batch, width), self.dtype)
        attended = tuple(
            (self._zeros(self.cols, self.channels),) * 2 for _ in self.model.attentions
        )
        return codes, left, attended

    def _cast(self, weight):
        return ops.cast(weight, self.dtype)

    def _zeros(self, *shape):
        return ops.zeros((self.batch, *shape), self.dtype)

    def vertical(self, row, above):
        """Advance the vertical stack by a row.

        Args:
            row: int scalar tensor, number of the row.
            above: what each vertical layer has seen in the rows before.

        Returns:
            What the row gives to the horizontal stack, (blocks, batch, cols, 2 * C), with that
            one's biases and what gathered ones add to it; and the new `above`, but for the first
            layer's, whose codes are still to come.
        """
        condition = ops.take(self.condition, row, axis=1)[:, None]
        unseen = self._zeros(1, self.cols, self.channels)
        features = self.model.first_vertical.slide(ops.concatenate([above[0], unseen], axis=1))
        given, seen = [], [above[0]]
        for number, (block, before) in enumerate(zip(self.model.blocks, above[1:], strict=True)):
            rows = ops.concatenate([before, features], axis=1)
            wide = block.vertical.slide(rows) + block.from_condition(condition)
            bias = self._cast(block.horizontal.bias)
            bias += (self.biases[number] @ self.centre[number])[0]
            given.append((block.from_vertical(wide) + bias)[:, 0])
            seen.append(rows[:, 1:])
            features = features + gate(wide)
        return ops.stack(given), tuple(seen)

    def logits(self, row, col, given, memory):
        """Advance the horizontal stack by a code.

        Args:
            row, col: int scalar tensors, the code's place.
            given: what `vertical` gave for this place, (blocks, batch, 2 * C).
            memory: as `start_row`; its codes are those on the left, up to the code before.

        Returns:
            float32 logits (batch, num_embeddings), and the new `memory`, but for its codes.
        """
        codes, left, attended = memory
        features, given = codes @ self.first_left, ops.unstack(given + left @ self.left)
        seen, gated, kept = [], [], []
        for number, (centre, residual) in enumerate(zip(self.centre, self.residual, strict=True)):
            seen.append(features)
            gated.append(gate(features @ centre + given[number]))
            features = features + gated[-1] @ residual
            if str(number) in self.model.attentions:
                added, *new = self._attend(number, row, col, features, attended[len(kept)])
                features = features + added
                kept.append(tuple(new))
        skips = ops.concatenate(gated, axis=-1) @ self.skip + self.skip_bias
        left = _shifted(left, ops.stack(seen) + self.biases[:-1])
        return self.model.head(skips + features + self.biases[-1]), (codes, left, tuple(kept))

    def _attend(self, number, row, col, features, attended):
        """What the attention after a block adds to its features; its new keys and values."""
        attention = self.model.attentions[str(number)]
        condition = ops.take(ops.take(self.condition, row, axis=1), col, axis=1)
        query, *new = attention.project(features + self.biases[number + 1], condition)
        places = ops.arange(self.cols)
        # Added to zeros: a `where` that broadcasts takes longer.
        here = ops.cast(places == col, self.dtype)[:, None]
        key, value = (old + here * one[:, None] for old, one in zip(attended, new, strict=True))
        return attention.attend_once(query, key, value, places <= col), key, value

    def append_code(self, memory, code):
        """`memory` of a row once the code itself, int (batch,), is known."""
        codes, *rest = memory
        return _shifted(codes, self.model.embedding(code)), *rest

    def append_row(self, above, codes):
        """`above` once the row's codes, int (batch, cols), are known."""
        embedded = self.model.embedding(codes)[:, None]
        return ops.concatenate([above[0], embedded], axis=1)[:, 1:], *above[1:]


def _shifted(window, new):
    """A window of places, side by side in the channels, moved on by a place."""
    if window.shape[-1] == new.shape[-1]:
        return new
    return ops.concatenate([window, new], axis=-1)[..., new.shape[-1] :]


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
        given: int array of shape (batch, r, c), codes that are kept; `MASKED` elsewhere. None for
            grids that are all new. Codes given after an unknown one in scan order do not change it.

    Returns:
        `{"codes", "log_prob"}`: int32 array of shape (batch, r, c), and float32 of the same shape,
        the model's own log-probability (nats) of each code given those before it.

    Raises:
        InputError: if temperature, top_k or top_p is out of its range, or `given` holds what is no
            code.
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
            given = np.full(np.shape(uniform), MASKED)
        if np.min(given) < MASKED or np.max(given) >= self.model.num_embeddings:
            raise InputError(
                f"`given` must hold codes under {self.model.num_embeddings}, or {MASKED} where "
                f"none is known. Received: values from {np.min(given)} to {np.max(given)}."
            )
        codes, log_prob = self.loop(
            np.asarray(position, "float32"),
            np.asarray(uniform, "float32"),
            np.asarray(given, "int32"),
        )
        return {"codes": np.asarray(codes), "log_prob": np.asarray(log_prob)}

    def batches(self, positions, seed, batch_size, given=None, numbers=None):
        """Draw any number of grids, a batch at a time, with a progress bar.

        Args:
            positions: float array of shape (samples,), in [0, 1].
            seed: int; a sample depends on it and on its own number alone, not on the batches.
            batch_size: int, grids drawn at a time.
            given: int array of shape (samples, r, c) as above, or None.
            numbers: int array of shape (samples,), whose chance each sample takes: its own by
                default.

        Yields:
            What a call returns, for one batch after the other.
        """
        count, shape = len(positions), self.model.grid_shape
        numbers = np.arange(count) if numbers is None else numbers
        with bar(total=count, description="sampling", unit="slices") as shown:
            for start in range(0, count, batch_size):
                # The last batch is filled up: another size would be compiled anew.
                rows = np.minimum(np.arange(start, start + min(batch_size, count)), count - 1)
                drawn = self(
                    np.asarray(positions)[rows],
                    uniform_noise(seed, numbers[rows].tolist(), shape),
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

        def draw_code(col, state):
            memory, codes, log_prob = state
            logits, memory = cache.logits(row, col, ops.take(from_above, col, axis=2), memory)
            drawn = draw(filter_logits(logits, **self.limits), ops.take(uniform, col, axis=1))
            known = ops.take(given, col, axis=1)
            code = ops.where(known == MASKED, drawn, known)
            here = ops.arange(cache.cols) == col
            return (
                cache.append_code(memory, code),
                ops.where(here, code[:, None], codes),
                ops.where(here, -self.model.nats(code, logits)[:, None], log_prob),
            )

        empty = (ops.zeros_like(given), ops.zeros_like(uniform))
        _, *found = ops.fori_loop(0, cache.cols, draw_code, (cache.start_row(), *empty))
        return cache.append_row(above, found[0]), found


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


def complete(
    sampler: Sampler,
    known: np.ndarray,
    position: float,
    count: int,
    seed: int,
    batch_size=BATCH_SIZE,
) -> dict:
    """Complete a partly known code grid.

    Codes are drawn in scan order, so those known further on have no say in a draw. So
    `CANDIDATES` times as many grids are drawn, and those asked for are chosen from them with a
    chance in proportion to the probability that each gives to the known codes: the more
    candidates, the nearer this is to the exact conditional distribution.

    Args:
        sampler: draws the grids.
        known: int array of shape (r, c), codes, or `MASKED`.
        position: the slice's position, in [0, 1].
        count: number of completions.
        seed: int.
        batch_size: int, grids drawn at a time.

    Returns:
        As a call of `Sampler`, for `count` grids.

    Reference:
        Rubin 1987, sampling/importance resampling; without replacement, so that no two completions
        are one.
    """
    positions = np.full(count * CANDIDATES, position)
    drawn, evidence = _candidates(sampler, known, positions, seed, batch_size)
    chance = np.random.default_rng([seed, len(evidence)]).gumbel(size=len(evidence))
    rows = np.argsort(-(evidence + chance))[:count]
    return {name: values[rows] for name, values in drawn.items()}


def most_likely_position(
    sampler: Sampler, known: np.ndarray, positions: np.ndarray, seed: int, batch_size=BATCH_SIZE
) -> float:
    """The position in the head that gives the known codes of a grid the highest probability.

    An estimate: between the known codes stand drawn ones, of one completion for each position. All
    are drawn by the same chance, so that positions alone make them differ.

    Args:
        sampler: draws a completion for each position, under which the known codes are judged.
        known: int array of shape (r, c), codes, or `MASKED`.
        positions: float array of shape (n,), the positions to choose from, in [0, 1].
        seed: int.
        batch_size: int, grids drawn at a time.

    Returns:
        One of `positions`.

    Raises:
        InputError: if no code is known.
    """
    if (known == MASKED).all():
        raise InputError(
            "Nothing of the picture is left to tell its level in the head. Give --position."
        )
    numbers = np.zeros(len(positions), int)
    _, evidence = _candidates(sampler, known, positions, seed, batch_size, numbers)
    return float(positions[np.argmax(evidence)])


def _candidates(sampler, known, positions, seed, batch_size, numbers=None):
    """Grids with the known codes in them, and how likely (nats) each makes those codes."""
    given = np.broadcast_to(known, (len(positions), *known.shape))
    batches = list(sampler.batches(positions, seed, batch_size, given, numbers))
    drawn = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return drawn, np.where(known == MASKED, 0, drawn["log_prob"]).sum(axis=(1, 2))
