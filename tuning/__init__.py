"""Hyperparameter search over both stages: reconstruction quality against the bits of the codes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["SearchConfig"],
        "report": ["pareto_front"],
        "spaces": ["SPACES"],
    },
)
