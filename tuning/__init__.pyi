from .config import SearchConfig
from .report import pareto_front
from .spaces import SPACES

__all__ = [
    "SPACES",
    "SearchConfig",
    "pareto_front",
]
