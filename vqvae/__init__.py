"""Stage one: a VQ-VAE that encodes brain slices as grids of codes and decodes them.

`from vqvae import VQVAE` also registers the model with Keras, so that `keras.saving.load_model`
can load it. Importing the package alone imports no backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
