"""Stage one: a VQ-VAE that turns brain slices into grids of codes and back.

`from vqvae import VQVAE` also registers the model with Keras, so that `keras.saving.load_model`
knows it; importing the package alone loads nothing heavy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["PRESETS", "VQVAEConfig"],
        "model": ["VQVAE"],
        "quantizer": ["VectorQuantizer", "VectorQuantizerEMA"],
        "training": ["train"],
    },
)
