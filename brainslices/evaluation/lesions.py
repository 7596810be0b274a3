"""Synthetic lesions with known masks, to measure what an anomaly map finds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from brainslices.data.archive import FOREGROUND_THRESHOLD

__all__ = ["LESIONS", "Lesion", "head_mask"]

# Pixels over which the edge of a blob fades.
EDGE = 1.5


@dataclass(frozen=True)
class Lesion:
    """A kind of lesion.

    Args:
        kind: "bright" or "dark", a disc that adds or subtracts `contrast`; "missing", a black
            square; or "shifted", a square of pixels from half its side away.
        size: diameter, or side of the square, in pixels.
        contrast: intensity that a disc adds or subtracts; 0 for a square.
    """

    kind: str
    size: int
    contrast: float = 0.0

    def __str__(self) -> str:
        contrast = f", contrast {self.contrast:g}" if self.contrast else ""
        return f"{self.kind} {self.size} px{contrast}"

    def add_to(
        self, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Add one lesion at a random place that lies inside the head with all of its pixels.

        Args:
            image: float32 array of shape (rows, cols), in [0, 1].
            rng: chooses the place.

        Returns:
            The image with the lesion, clipped to [0, 1], and the lesion's mask, a bool array of
            shape (rows, cols); None if the head is too small for it.
        """
        add: Callable = _blob if self.kind in ("bright", "dark") else _square
        radius = self.size / 2 * (1 if add is _blob else 2**0.5)
        # Distances to the outermost pixel of the head: those to the first pixel outside, minus 1.
        distances = distance_transform_edt(np.pad(head_mask(image), 1))[1:-1, 1:-1] - 1
        places = np.argwhere(distances >= radius)
        if not len(places):
            return None
        return add(self, image, places[rng.integers(len(places))])


LESIONS = (
    *(
        Lesion(kind, size, contrast)
        for kind in ("bright", "dark")
        for size in (6, 12, 24)
        for contrast in (0.1, 0.2, 0.3)
    ),
    Lesion("missing", 12),
    Lesion("shifted", 24),
)


def head_mask(image: np.ndarray) -> np.ndarray:
    """Return where the head is: the foreground with its holes filled, a bool array."""
    return binary_fill_holes(image > FOREGROUND_THRESHOLD)


def _blob(lesion, image, centre):
    distance = np.hypot(*(np.indices(image.shape) - centre[:, None, None]))
    # Half of the contrast is reached at the radius, where the mask ends.
    profile = np.clip((lesion.size / 2 - distance) / EDGE + 0.5, 0, 1)
    sign = 1 if lesion.kind == "bright" else -1
    changed = np.clip(image + np.float32(sign * lesion.contrast) * profile, 0, 1)
    return changed.astype("float32"), distance <= lesion.size / 2


def _square(lesion, image, centre):
    top, left = centre - lesion.size // 2
    inside = np.zeros(image.shape, bool)
    inside[top : top + lesion.size, left : left + lesion.size] = True
    if lesion.kind == "missing":
        return np.where(inside, np.float32(0), image), inside
    return np.where(inside, np.roll(image, lesion.size // 2, axis=1), image), inside
