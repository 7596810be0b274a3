"""Shared by both stages: archives of brain slices, runs, training, evaluation and figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
