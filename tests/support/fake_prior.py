"""A prior and a decoder in plain NumPy for the browser app: no backend, nothing to train."""

import time
from types import SimpleNamespace

import numpy as np

from brainslices.data.crop import CropBox
from pixelcnn.conditions import Variable

GRID, CODES, SIDE = (6, 7), 32, 64
# A seed whose samples stay half done until they are cancelled.
HELD_SEED, HOLD_S = 99, 0.5
CROP = CropBox(8, 4, 48, 56)
VARIABLES = (Variable("age", 40, 90), Variable("sex", categories=("F", "M")))


class FakeDecoder:
    """A code is the mean grey level of its cell of 8 x 8 pixels."""

    image_shape, crop, code_grid_shape = (SIDE, SIDE), (8, 4, 48, 56), GRID
    bits_per_pixel_raw = 42 * 5 / SIDE**2

    def encode_to_codes(self, images):
        cells = CROP.cut(images)[..., 0].reshape(len(images), 6, 8, 7, 8)
        return np.rint(cells.mean(axis=(2, 4)) * (CODES - 1)).astype("int32")

    def decode_codes(self, codes):
        pixels = np.kron(np.asarray(codes) / (CODES - 1), np.ones((1, 8, 8)))
        return CROP.paste(pixels.astype("float32")[..., None], self.image_shape)


class FakeModel:
    """Every code is as likely as any other; position 0.4 is likeliest."""

    condition_variables, num_embeddings, scan_shape, grid_shape = VARIABLES, CODES, GRID, GRID

    def with_conditions(self, positions, conditions=None):
        return np.asarray(positions, "float32")

    def log_prob(self, codes, positions):
        nats = np.log(CODES) + np.abs(positions - 0.4)
        return -np.broadcast_to(nats[:, None, None], codes.shape).astype("float32")


class FakeScorer:
    """The surprise of a code is its distance to the middle of the codebook."""

    threshold = 10.0

    def __call__(self, images, positions, silent):
        codes = FakeDecoder().encode_to_codes(np.stack(images)[..., None])
        surprise = np.abs(codes - CODES / 2).astype("float32")
        bits = surprise.sum(axis=(1, 2))
        return SimpleNamespace(surprise=surprise, bits=bits, percentiles=np.full(len(bits), 60.0))

    def maps(self, values):
        return CROP.paste(np.kron(values, np.ones((1, 8, 8))), (SIDE, SIDE))


class FakePrior:
    """Samples uniform codes, a row at a time."""

    def __init__(self):
        self.decoder, self.model = FakeDecoder(), FakeModel()
        self.provenance = SimpleNamespace(positions=(0.0, 1.0))
        self.options = []

    def partial_grids(self, count, position, *, rows, shared_noise, seed=0, guidance=1, **options):
        self.options.append(options)
        seeds = [0] * count if shared_noise else range(count)
        noise = [np.random.default_rng([seed, k]).random(GRID) ** guidance for k in seeds]
        codes = (np.stack(noise) * CODES).astype("int32")
        positions = np.sort(np.resize(position, count)).astype("float32")
        for stop in range(rows, GRID[0] + rows, rows):
            sampled = np.where(np.arange(GRID[0])[:, None] < stop, codes, -1)
            log_prob = np.where(sampled < 0, 0, -np.log(CODES)).astype("float32")
            yield {"codes": sampled, "log_prob": log_prob, "positions": positions}
            while seed == HELD_SEED and stop >= GRID[0] // 2:
                time.sleep(HOLD_S)
                yield {"codes": sampled, "log_prob": log_prob, "positions": positions}

    def inpaint(self, image, hidden, position, *, seed, batch_size):
        noise = np.random.default_rng(seed).random(image.shape)
        return np.where(hidden, noise, image / 255).astype("float32")[None, ..., None]
