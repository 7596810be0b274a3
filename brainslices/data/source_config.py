"""Flags of `prepare_data`: the source of an archive; they load no NumPy, for `--help`."""

import math
from dataclasses import dataclass
from pathlib import Path

from brainslices.config import check_field
from brainslices.data.file_selection import FileSelection
from brainslices.errors import InputError
from brainslices.schema import MAX_SIDE

__all__ = ["FRACTIONS", "SourceConfig"]

FRACTIONS = (0.8, 0.1, 0.1)


@dataclass(frozen=True, kw_only=True)
class _Paths:
    source: str
    """Folder of images or volumes, a single file, or the word `phantom`."""
    out: Path
    """Folder of the slice archive to write."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig(FileSelection, _Paths):  # the flags of _Paths come first
    """Source of an archive, and how its slices are selected and split."""

    fractions: tuple[float, float, float] = FRACTIONS
    """Fractions of the subjects for train, validate and test.

    If the source has train and test alone, the first two divide the subjects of its train."""
    seed: int = 0
    """Seed of the split by subject, of --subjects and of the phantoms."""
    slices: int | None = None
    """Slices per subject: 32 by default for volumes, 16 for phantoms."""
    size: tuple[int, int] | None = None
    """Rows and cols of a slice: 256 256 by default for volumes, 128 128 for phantoms. Images keep
    their size by default; to another size they are scaled as a whole and zero-padded."""
    window: tuple[float, float] | None = None
    """Grey levels of images that become black and white, for images of more than 8 bits."""
    pixel_mm: float | None = None
    """Side of a pixel of volumes in mm.

    Default: 1, or less for a head that would be tiny, or more for one that would not fit."""
    positions: tuple[float, float] | None = None
    """Lowest and highest slice of volumes, as fractions of the head's height.

    Default: 0.45 0.65, in a skull-stripped head about the slab of the public release."""
    positions_mm: tuple[float, float] | None = None
    """Lowest and highest slice of volumes as world z in mm, instead of fractions."""
    subjects: int | None = None
    """Number of subjects, drawn in proportion from each split. Default: all; 64 phantoms."""
    grid_multiple: int = 8
    """The sides of the crop are multiples of this, so that a model's downsampling divides them."""
    subject_table: Path | None = None
    """CSV or TSV with a column subject (or participant_id) and any others, kept as subjects.csv.

    Phantoms have a table of their own, which this one replaces."""
    overwrite: bool = False
    """Replace an existing archive."""

    def __post_init__(self):
        for name in ("slices", "subjects"):
            check_field(self, name, lambda value: value is None or value >= 1, "at least 1")
        check_field(self, "grid_multiple", lambda value: 1 <= value <= 64, "from 1 to 64")
        check_field(self, "seed", lambda value: value >= 0, "at least 0")
        check_field(
            self,
            "size",
            lambda value: value is None or 16 <= min(value) <= max(value) <= MAX_SIDE,
            "at least 16 by 16, at most 32,768 by 32,768",
        )
        check_field(
            self,
            "fractions",
            lambda value: min(value) >= 0 and abs(sum(value) - 1) < 1e-6,
            "fractions of at least 0 that sum to 1",
        )
        check_field(
            self,
            "positions",
            lambda value: value is None or 0 <= value[0] <= value[1] <= 1,
            "in [0, 1], the lower one first",
        )
        check_field(
            self,
            "window",
            lambda value: value is None or -math.inf < value[0] < value[1] < math.inf,
            "two finite numbers, the lower one first",
        )
        check_field(
            self,
            "pixel_mm",
            lambda value: value is None or 0.001 <= value <= 100,
            "from 0.001 to 100",
        )
        if self.positions and self.positions_mm:
            raise InputError("Give `positions` or `positions_mm`, not both.")
