"""Stage two: a gated PixelCNN prior over grids of codes, and samples from it.

`from pixelcnn import PixelCNN` also registers the model with Keras, so that
`keras.saving.load_model` can load it. Importing the package alone imports no backend.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
