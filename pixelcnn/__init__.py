"""Stage two: a gated PixelCNN prior over grids of codes, and samples from it.

`from pixelcnn import PixelCNN` also registers the model with Keras, so that
`keras.saving.load_model` knows it; importing the package alone loads nothing heavy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["PixelCNNConfig", "PixelCNNTraining"],
        "model": ["PixelCNN"],
        "distribution": ["CodePrior"],
        "sampling": ["Sampler"],
        "training": ["train"],
    },
)
