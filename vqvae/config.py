"""Configuration of stage one and its presets, free of Keras so that a command can show them."""

import math
from dataclasses import dataclass
from typing import Literal

from brainslices.config import Preset, TrainingConfig, check_field

__all__ = ["PRESETS", "VQVAEConfig", "VQVAETraining"]

MOST_EMBEDDINGS = 2**14
WIDEST = 4096


@dataclass(frozen=True)
class VQVAEConfig:
    """What a VQ-VAE is made of. Every default of the science stands in `PRESETS` alone."""

    magnification: float
    """Size of the coded picture against the crop; above 1 spends more codes on each pixel."""
    channels: tuple[int, ...]
    """Width of each of the encoder's two or three levels, each of which halves the sides."""
    kernel_size: int
    """Side of the resampling convolutions, in pixels."""
    encoder_blocks: int
    """Residual blocks on the code grid, before the quantiser."""
    decoder_blocks: int
    """Residual blocks on the code grid, after the quantiser."""
    num_embeddings: int
    """Codes in the codebook."""
    embedding_dim: int
    """Width of a code."""
    codebook: Literal["ema", "gradient"]
    """How the codes are learned: moving averages of their latents, or by the optimiser."""
    decay: float
    """Discount of the moving averages at each step (EMA codebook)."""
    restart_threshold: float
    """Latents a step under which a code is dead and starts again; 0 never (EMA codebook)."""
    commitment_cost: float
    """Weight of the commitment loss."""
    kmeans_init: bool
    """Start the codes at the k-means centres of the first batches' latents."""
    l2_normalized: bool
    """Compare latents and codes by their direction alone."""
    rotation_trick: bool
    """Pass gradients through the quantiser by rotation instead of straight through."""
    l1_weight: float
    """Weight of the mean absolute error, in standard deviations of the training slices."""
    mse_weight: float
    """Weight of the mean squared error over the variance of the training slices."""
    ssim_weight: float
    """Weight of 1 - SSIM."""

    def __post_init__(self):
        self._check_network()
        self._check_quantizer()
        for name in ("l1_weight", "mse_weight", "ssim_weight"):
            check_field(
                self, name, lambda value: 0 <= value < math.inf, "a finite number, at least 0"
            )
        if self.l1_weight + self.mse_weight + self.ssim_weight == 0:
            check_field(self, "mse_weight", bool, "positive, as the other two weights are 0")

    def _check_network(self):
        check_field(self, "magnification", lambda value: 0.25 <= value <= 4, "from 0.25 to 4")
        check_field(
            self,
            "channels",
            lambda widths: len(widths) in (2, 3) and min(widths) >= 1 and max(widths) <= WIDEST,
            f"two or three widths from 1 to {WIDEST} (downsampling 4 or 8)",
        )
        check_field(self, "kernel_size", lambda value: value in (3, 4, 5), "3, 4 or 5")
        for name in ("encoder_blocks", "decoder_blocks"):
            check_field(self, name, lambda value: value >= 0, "at least 0")

    def _check_quantizer(self):
        check_field(
            self,
            "num_embeddings",
            lambda value: 2 <= value <= MOST_EMBEDDINGS,
            f"from 2 to {MOST_EMBEDDINGS}",
        )
        check_field(
            self, "embedding_dim", lambda value: 1 <= value <= WIDEST, f"from 1 to {WIDEST}"
        )
        check_field(self, "codebook", ("ema", "gradient").__contains__, "'ema' or 'gradient'")
        check_field(self, "decay", lambda value: 0 <= value < 1, "in [0, 1)")
        check_field(self, "commitment_cost", lambda value: value > 0, "a positive number")
        check_field(self, "restart_threshold", lambda value: value >= 0, "at least 0")
        if self.codebook == "gradient":
            check_field(
                self,
                "restart_threshold",
                lambda value: value == 0,
                "0 with codebook='gradient': only the EMA codebook counts its codes",
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the coded picture to a code, along each side."""
        return 2 ** len(self.channels)


@dataclass(frozen=True, kw_only=True)
class VQVAETraining(TrainingConfig):
    """How a VQ-VAE is trained."""

    mirror: bool
    """Show each slice turned left to right half of the time."""


# The seed document's network: 32-64-16, 3 x 3, stride 2 twice, K = 128, MSE / variance, Adam.
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

# 512 codes on a grid of 1/8 of the magnified crop; an hour on two cores with bfloat16.
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
    ),
    training=VQVAETraining(
        epochs=28,
        batch_size=32,
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=100,
        beta_2=0.99,
        gradient_clip=1.0,
        mirror=False,
    ),
)

PRESETS: dict[str, Preset[VQVAEConfig, VQVAETraining]] = {"default": DEFAULT, "seed": SEED}
