"""Configuration and presets of the VQ-VAE; importing them loads no Keras, for `--help`."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from brainslices.config import Preset, TrainingConfig, check_field
from brainslices.resources import TRAINING_BYTES, check_needed

__all__ = ["DEFAULT", "PRESETS", "Encoding", "VQVAEConfig", "VQVAETraining"]

MAX_WIDTH = 4096


@dataclass(frozen=True)
class VQVAEConfig:
    """Architecture and losses of a VQ-VAE. Only `PRESETS` holds default values."""

    magnification: float
    """Size of the encoded image relative to the crop; above 1 there are more codes per pixel."""
    channels: tuple[int, ...]
    """Widths of the encoder's two or three strided convolutions, each of which halves the sides."""
    kernel_size: int
    """Side of the strided and transposed convolutions."""
    encoder_blocks: int
    """Residual blocks on the code grid, before the quantiser."""
    decoder_blocks: int
    """Residual blocks on the code grid, after the quantiser."""
    num_embeddings: int
    """Number of codes in the codebook."""
    embedding_dim: int
    """Width of a code."""
    codebook: Literal["ema", "gradient"]
    """How the codebook is trained: moving averages of the latents, or by the optimiser."""
    decay: float
    """Discount of the moving averages at each step (EMA codebook)."""
    restart_threshold: float
    """Latents per step below which a code is dead and restarts; 0 disables (EMA codebook)."""
    commitment_cost: float
    """Weight of the commitment loss."""
    kmeans_init: bool
    """Initialise the codebook with k-means on the latents of the first batches."""
    l2_normalized: bool
    """Compare latents and codes on the unit sphere."""
    rotation_trick: bool
    """Pass gradients through the quantiser by rotation instead of straight through."""
    l1_weight: float
    """Weight of the mean absolute error, in standard deviations of the training slices."""
    mse_weight: float
    """Weight of the mean squared error, divided by the variance of the training slices."""
    ssim_weight: float
    """Weight of 1 - SSIM."""
    foreground_share: float = 0.0
    """Share of that SSIM which is the mean over the foreground; the rest is the mean over the
    crop."""

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))  # a list in JSON
        not_negative, finite = "at least 0", "a finite number, at least 0"
        checks = (
            ("magnification", lambda value: 0.25 <= value <= 4, "from 0.25 to 4"),
            ("channels", _are_widths, f"two or three widths from 1 to {MAX_WIDTH}"),
            ("kernel_size", lambda value: value in (3, 4, 5), "3, 4 or 5"),
            ("encoder_blocks", lambda value: value >= 0, not_negative),
            ("decoder_blocks", lambda value: value >= 0, not_negative),
            ("num_embeddings", lambda value: 2 <= value <= 2**14, f"from 2 to {2**14}"),
            ("embedding_dim", lambda value: 1 <= value <= MAX_WIDTH, f"from 1 to {MAX_WIDTH}"),
            ("codebook", ("ema", "gradient").__contains__, "'ema' or 'gradient'"),
            ("decay", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("restart_threshold", lambda value: value >= 0, not_negative),
            ("commitment_cost", lambda value: value > 0, "a positive number"),
            ("l1_weight", lambda value: 0 <= value < math.inf, finite),
            ("mse_weight", lambda value: 0 <= value < math.inf, finite),
            ("ssim_weight", lambda value: 0 <= value < math.inf, finite),
            ("foreground_share", lambda value: 0 <= value <= 1, "from 0 to 1"),
        )
        for name, is_valid, expectation in checks:
            check_field(self, name, is_valid, expectation)
        weights = self.encoder_blocks + self.decoder_blocks
        weights *= 10 * self.channels[-1] ** 2
        what = f"encoder_blocks={self.encoder_blocks}, decoder_blocks={self.decoder_blocks}"
        check_needed(what, memory=weights * TRAINING_BYTES)
        if self.codebook == "gradient":
            only_zero = "0 with codebook='gradient': only the EMA codebook counts its codes"
            check_field(self, "restart_threshold", lambda value: value == 0, only_zero)
        if self.l1_weight + self.mse_weight + self.ssim_weight == 0:
            check_field(self, "mse_weight", bool, "positive, as the other two weights are 0")

    @property
    def downsampling(self) -> int:
        """Pixels of the encoded image per code, along each side."""
        return 2 ** len(self.channels)


def _are_widths(channels):
    return len(channels) in (2, 3) and min(channels) >= 1 and max(channels) <= MAX_WIDTH


@dataclass(frozen=True, kw_only=True)
class VQVAETraining(TrainingConfig):
    """How a VQ-VAE is trained."""

    mirror: bool
    """Random left-right flip with probability 0.5."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How slices are encoded."""

    sweeps: int = 0
    """Sweeps of `vqvae.code_search.CodeSearch`; 0 for the nearest codes."""
    rate_weight: float = 0.0
    """Loss that one bit per pixel is worth to the search; above 0 it prefers cheaper codes."""
    entropy_model: Any = None
    """Counts the bits of the codes, such as a `pixelcnn.entropy_model.EntropyModel` of the
    slices."""

    def __post_init__(self):
        check_field(self, "sweeps", lambda value: value >= 0, "at least 0")
        finite = "a finite number, at least 0"
        check_field(self, "rate_weight", lambda value: 0 <= value < math.inf, finite)
        if self.rate_weight and not (self.sweeps and self.entropy_model):
            needed = "0 without both sweeps (--sweeps) and an entropy model (--prior)"
            check_field(self, "rate_weight", lambda value: value == 0, needed)


# The baseline network: 32-64-16, 3 x 3, stride 2 twice, K = 128, MSE / variance, Adam.
SEED = Preset(
    model=VQVAEConfig(
        magnification=1.0,
        channels=(32, 64),
        kernel_size=3,
        encoder_blocks=0,
        decoder_blocks=0,
        num_embeddings=128,
        embedding_dim=16,
        codebook="gradient",
        decay=0.0,
        restart_threshold=0.0,
        commitment_cost=0.25,
        kmeans_init=False,
        l2_normalized=False,
        rotation_trick=False,
        l1_weight=0.0,
        mse_weight=1.0,
        ssim_weight=0.0,
    ),
    training=VQVAETraining(
        epochs=15,
        batch_size=128,
        learning_rate=1e-3,
        schedule="constant",
        warmup_steps=0,
        beta_2=0.999,
        gradient_clip=0.0,
        mirror=False,
    ),
)

# 512 codes on a grid of 1/8 of the magnified crop; half an hour on two cores with bfloat16.
DEFAULT = Preset(
    model=VQVAEConfig(
        magnification=1.2,
        channels=(64, 128, 128),
        kernel_size=4,
        encoder_blocks=2,
        decoder_blocks=3,
        num_embeddings=512,
        embedding_dim=32,
        codebook="ema",
        decay=0.99,
        restart_threshold=0.5,
        commitment_cost=0.25,
        kmeans_init=True,
        l2_normalized=False,
        rotation_trick=False,
        l1_weight=1.0,
        mse_weight=0.0,
        ssim_weight=3.0,
        foreground_share=0.7,
    ),
    training=VQVAETraining(
        epochs=10,
        batch_size=8,
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=100,
        beta_2=0.99,
        gradient_clip=1.0,
        optimizer="muon",
        mirror=False,
    ),
)

# A quarter of the arithmetic of `default`, for laptops: 14 minutes on two cores without AVX-512.
SMALL = Preset(
    model=replace(DEFAULT.model, channels=(32, 64, 64)),
    training=replace(DEFAULT.training, epochs=3, learning_rate=4e-3),
)

PRESETS: dict[str, Preset[VQVAEConfig, VQVAETraining]] = {
    "default": DEFAULT,
    "small": SMALL,
    "seed": SEED,
}
