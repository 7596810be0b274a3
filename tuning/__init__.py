"""Search over both stages: how well slices are reconstructed, and for how many bits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["SearchConfig"],
        "report": ["pareto_front"],
        "spaces": ["SPACES"],
    },
)
