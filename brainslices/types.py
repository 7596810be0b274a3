"""Types used in annotations throughout."""

import os
from typing import Any

__all__ = ["PathLike", "Tensor"]

Tensor = Any
"""A tensor of any backend, eager or symbolic, or anything that `keras.ops` converts to one."""
PathLike = str | os.PathLike[str]
"""A path in the public API."""
