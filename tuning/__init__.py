"""Hyperparameter search for the VQ-VAE: reconstruction quality against bits per pixel."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
