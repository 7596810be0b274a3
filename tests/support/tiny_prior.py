"""A tiny PixelCNN with weights set by hand, and inputs for it."""

import numpy as np

from pixelcnn.model import PixelCNN

GRID, CODES = (4, 5), 7
SMALL = {
    "channels": 8,
    "layers": 3,
    "kernel_size": 3,
    "first_kernel_size": 5,
    "attention_layers": 2,
    "attention_heads": 2,
    "condition_width": 6,
    "position_frequencies": 4,
    "head_width": 12,
    "dropout": 0.1,
    "scan": "raster",
}


def tiny_pixelcnn(grid=GRID, codes=CODES, fill=True, **changes):
    """A built model; if filled, all of its weights are nonzero."""
    model = PixelCNN(grid, codes, **{**SMALL, **changes})
    model.build()
    if fill:
        for number, weight in enumerate(model.trainable_variables):
            noise = np.random.default_rng(number).normal(size=weight.shape)
            weight.assign(0.4 * noise)
    return model


def tiny_inputs(count=2, grid=GRID, codes=CODES, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codes": rng.integers(0, codes, (count, *grid)).astype("int32"),
        "position": rng.random(count).astype("float32"),
    }
