"""Small quantizer layers with a random codebook, and a reference of the nearest-code search."""

import numpy as np
import pytest
from helpers import normal

from vqvae.quantizer import VectorQuantizer, VectorQuantizerEMA

CODES, WIDTH = 6, 3


def nearest_by_brute_force(latents, codebook):
    differences = latents[:, None].astype("float64") - codebook[None]
    return np.square(differences).sum(-1).argmin(-1)


def quantize(layer, latents, **options):
    """Return the code vectors of the latents, without the codes."""
    return layer(latents, **options)[0]


def gradient_layer(codebook=None, **changes):
    layer = VectorQuantizer(CODES, WIDTH, 0.25, **changes)
    layer.build((None, WIDTH))
    layer.codes_weight.assign(normal(CODES, WIDTH) if codebook is None else codebook)
    return layer


def ema_layer(codebook=None, decay=0.9, restart_threshold=0.0, **changes):
    codebook = normal(CODES, WIDTH) if codebook is None else codebook
    layer = VectorQuantizerEMA(
        *codebook.shape, 0.25, decay=decay, restart_threshold=restart_threshold, **changes
    )
    layer.build((None, codebook.shape[1]))
    layer.ema_sum.assign(codebook)
    return layer


LAYERS = {"gradient": gradient_layer, "ema": ema_layer}
each_layer = pytest.mark.parametrize("make_layer", LAYERS.values(), ids=LAYERS)
