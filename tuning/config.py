"""Configuration of a search. Imports no Keras, so that `tune.py --help` stays fast."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brainslices.config import PRECISIONS, Precision, check_field

__all__ = ["FINAL_SEED", "METRICS", "OBJECTIVES", "RATES", "SPACE_NAMES", "SearchConfig"]

# A value of each final training, beside those of the space: 0 for its first seed, 1 for the next.
FINAL_SEED = "tuner/final_seed"

# The keys of tuning.spaces.SPACES, which is slow to import.
SPACE_NAMES = ("codebook", "full")
# Objective -> direction of keras-tuner.
OBJECTIVES = {"val_rate_distortion": "min", "val_ssim_foreground": "max"}
METRICS = (
    "val_rate_distortion",
    "val_ssim_foreground",
    "val_ssim",
    "bits_per_pixel_prior",
    "bits_per_pixel_estimated",
    "bits_per_pixel_order_0",
    "bits_per_pixel_raw",
    "nats_per_code",
    "perplexity",
    "codebook_usage",
    "epochs",
    "seconds",
)
"""Metrics of a completed trial, in the order of trials.csv. Those of a prior (bits, nats) are there
if the trial trained one, rate and distortion if they are the objective."""
# Metrics of the rate, the most realistic first, and their labels.
RATES = {
    "bits_per_pixel_prior": "bits per pixel under the prior",
    "bits_per_pixel_estimated": "bits per pixel, estimated",
    "bits_per_pixel_order_0": "bits per pixel, order-0 entropy",
}


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search space, algorithm, objective and length of a search."""

    space: str = "codebook"
    """Search space: `codebook`, `full`, or a Python file with a function `space(hp)`."""
    fix: tuple[str, ...] = ()
    """Dimensions fixed to one value: num_embeddings=512 downsampling=8 ..."""
    tuner: Literal["bayesian", "hyperband", "random"] = "bayesian"
    """Search algorithm of keras-tuner."""
    objective: Literal["val_rate_distortion", "val_ssim_foreground"] = "val_rate_distortion"
    """Validation score of a trial: (1 - ssim_foreground) + rate_weight * bits per pixel, or
    ssim_foreground alone, which favours the largest code grid."""
    rate_weight: float = 2.0
    """Weight of one bit per pixel relative to 1 of ssim_foreground."""
    trials: int = 12
    """Number of configurations to try."""
    epochs: int = 6
    """Training epochs of each VQ-VAE; with hyperband the maximum."""
    prior_epochs: int = 0
    """Training epochs of each trial's small prior; 0 trains none and estimates the bits per pixel
    from the entropy of the codes."""
    precision: Precision = "auto"
    """Precision of all trainings; `auto` is resolved once, at the start of the search."""
    seed: int = 0
    """Seed of the search algorithm and of every training."""
    finalists: int = 0
    """Number of configurations, those of the best trials, to train in full before one is chosen."""
    final_seeds: int = 2
    """Trainings of each finalist, with different seeds."""
    final_epochs: int = 20
    """Training epochs of each finalist's VQ-VAE."""
    final_prior_epochs: int = 20
    """Training epochs of the small prior of each of them."""

    @property
    def fixed_names(self) -> frozenset[str]:
        """Names of the fixed dimensions."""
        return frozenset(item.partition("=")[0] for item in self.fix)

    def __post_init__(self):
        counts = ("trials", "epochs", "final_seeds", "final_epochs", "final_prior_epochs")
        for name in counts:
            check_field(self, name, lambda value: value >= 1, "at least 1")
        for name in ("prior_epochs", "finalists"):
            check_field(self, name, lambda value: value >= 0, "at least 0")
        is_space = self.space in SPACE_NAMES or Path(self.space).suffix == ".py"
        expectation = f"{', '.join(SPACE_NAMES)} or a Python file with a function `space(hp)`"
        check_field(self, "space", lambda _: is_space, expectation)
        check_field(self, "rate_weight", lambda value: 0 < value < math.inf, "a positive number")
        check_field(self, "objective", OBJECTIVES.__contains__, "one of " + ", ".join(OBJECTIVES))
        check_field(self, "precision", PRECISIONS.__contains__, "one of " + ", ".join(PRECISIONS))
        last = 2**31 - self.final_seeds  # each final training adds its number
        check_field(self, "seed", lambda value: 0 <= value <= last, f"from 0 to {last}")
