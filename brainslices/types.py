"""Names for types that the backends do not share."""

import os
from typing import Any

__all__ = ["PathLike", "Tensor"]

# A tensor of whichever backend, symbolic or not, or anything that it can be made of.
Tensor = Any
PathLike = str | os.PathLike[str]
