"""Stage two: a gated PixelCNN prior over code grids, and sampling of novel slices.

`from pixelcnn import PixelCNN` registers the model with Keras for `keras.saving.load_model`.
Importing the package alone imports neither Keras nor a backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
