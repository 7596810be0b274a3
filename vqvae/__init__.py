"""Stage one: a VQ-VAE that encodes brain slices to grids of codes and decodes them.

Importing the package loads neither Keras nor a backend. `from vqvae import VQVAE` does, and it
registers the model with Keras, so that `keras.saving.load_model` can load it.
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
