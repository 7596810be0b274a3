"""Configuration of a search, free of Keras so that the command can show it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brainslices.config import PRECISIONS, Precision, check_field

__all__ = ["METRICS", "OBJECTIVES", "SPACE_NAMES", "SearchConfig"]

# Those of tuning.spaces, which takes a while to import.
SPACE_NAMES = ("codebook", "full")
# Objective -> which way is better.
OBJECTIVES = {"val_rate_distortion": "min", "val_ssim_foreground": "max"}
METRICS = (
    "val_rate_distortion",
    "val_ssim_foreground",
    "val_ssim",
    "bits_per_pixel_prior",
    "bits_per_pixel_order_0",
    "bits_per_pixel_raw",
    "nats_per_code",
    "perplexity",
    "codebook_usage",
    "epochs",
    "seconds",
)
"""What is known of a finished trial; the rate under a prior only where the objective wants it."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is searched for, and how."""

    space: str = "codebook"
    """What may vary: `codebook`, `full`, or a Python file with a function `space(hp)`."""
    fix: tuple[str, ...] = ()
    """Dimensions that keep one value: num_embeddings=512 downsampling=8 ..."""
    tuner: Literal["bayesian", "hyperband", "random"] = "bayesian"
    """Algorithm of keras-tuner that chooses the trials."""
    objective: Literal["val_rate_distortion", "val_ssim_foreground"] = "val_rate_distortion"
    """Score of a trial, on validation: (1 - ssim_foreground) + rate_weight * bits per pixel, or
    ssim_foreground alone, which trains no prior and prefers the largest grid."""
    rate_weight: float = 2.0
    """What a bit per pixel costs against 1 of ssim_foreground."""
    trials: int = 12
    """Configurations to try."""
    epochs: int = 6
    """Passes of each VQ-VAE over the training slices; the most of them with hyperband."""
    prior_epochs: int = 8
    """Passes of each trial's small prior over the codes."""
    precision: Precision = "auto"
    """Arithmetic of all trainings; `auto` is decided once, as the search begins."""
    seed: int = 0
    """Fixes which configurations are tried, and every training."""

    def __post_init__(self):
        for name in ("trials", "epochs", "prior_epochs"):
            check_field(self, name, lambda value: value >= 1, "at least 1")
        named = self.space in SPACE_NAMES or Path(self.space).suffix == ".py"
        told = f"{', '.join(SPACE_NAMES)} or a Python file with a function `space(hp)`"
        check_field(self, "space", lambda _: named, told)
        check_field(self, "rate_weight", lambda value: 0 < value < math.inf, "a positive number")
        check_field(self, "objective", OBJECTIVES.__contains__, "one of " + ", ".join(OBJECTIVES))
        check_field(self, "precision", PRECISIONS.__contains__, "one of " + ", ".join(PRECISIONS))
        check_field(self, "seed", lambda value: 0 <= value < 2**31, "from 0 to 2**31 - 1")
