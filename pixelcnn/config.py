"""Configuration of stage two, and the presets that hold all of its defaults."""

from dataclasses import dataclass, replace
from pathlib import Path

from brainslices.config import Preset, TrainingConfig, check_field
from brainslices.resources import TRAINING_BYTES, check_needed
from pixelcnn.masks import SCANS, Scan

__all__ = [
    "DEFAULT",
    "PRESETS",
    "PixelCNNConfig",
    "PixelCNNTraining",
    "SamplingConfig",
    "ScoringConfig",
]


@dataclass(frozen=True)
class PixelCNNConfig:
    """A gated PixelCNN; the code grids set its grid shape and the number of codes."""

    channels: int
    """Channels of the vertical and of the horizontal stack."""
    layers: int
    """Number of gated blocks."""
    kernel_size: int
    """Side of the masked kernels, odd."""
    first_kernel_size: int
    """Side of the first masked kernels (mask type A), odd."""
    attention_layers: int
    """Number of causal row-attention layers between the gated blocks; 0 for none."""
    attention_heads: int
    """Heads of each attention layer."""
    condition_width: int
    """Channels of the conditioning: grid cell and slice position."""
    position_frequencies: int
    """Number of cosine features that encode the slice position; 0 for an unconditional prior."""
    head_width: int
    """Units of the hidden layer before the logits."""
    dropout: float
    """Dropout rate in the gated blocks."""
    scan: Scan
    """Scan order of the codes: raster (row by row) or turned (column by column)."""
    conditions: tuple[str, ...] = ()
    """Columns of the archive's table of subjects that condition the prior, such as age sex."""
    augmentation_condition: bool = False
    """Condition the prior on whether a grid is mirrored or shifted, as augmented copies are."""

    def __post_init__(self):
        for name in ("channels", "layers", "condition_width", "head_width", "attention_heads"):
            check_field(self, name, lambda value: value >= 1, "at least 1")
        for name in ("kernel_size", "first_kernel_size"):
            check_field(self, name, lambda value: value >= 1 and value % 2, "odd and positive")
        check_field(
            self, "attention_layers", lambda value: 0 <= value <= self.layers, "0 to `layers`"
        )
        divides = f"a divisor of channels={self.channels}"
        check_field(self, "attention_heads", lambda value: self.channels % value == 0, divides)
        cosines = "0, or at least 2: the first cosine is constant"
        check_field(self, "position_frequencies", lambda value: value == 0 or value >= 2, cosines)
        check_field(self, "dropout", lambda value: 0 <= value < 1, "at least 0 and under 1")
        object.__setattr__(self, "conditions", tuple(self.conditions))  # a list in JSON
        check_field(
            self, "conditions", lambda value: len(set(value)) == len(value), "different columns"
        )
        check_field(self, "scan", SCANS.__contains__, "one of " + ", ".join(SCANS))
        weights = self.layers * self.channels * self.channels * self.kernel_size**2
        weights += self.channels * (self.first_kernel_size**2 + self.head_width)
        weights += self.condition_width * (self.layers * self.channels + self.position_frequencies)
        sizes = {name: value for name, value in vars(self).items() if type(value) is int}
        what = ", ".join(f"{name}={value}" for name, value in sizes.items())
        check_needed(what, memory=weights * TRAINING_BYTES)


@dataclass(frozen=True, kw_only=True)
class PixelCNNTraining(TrainingConfig):
    """Hyperparameters of a prior's training."""

    variants: int
    """Augmented copies of each training slice, flipped and shifted before encoding."""

    def __post_init__(self):
        super().__post_init__()
        check_field(self, "variants", lambda value: value >= 0, "at least 0")


@dataclass(frozen=True)
class SamplingConfig:
    """How slices are sampled from a prior."""

    count: int = 16
    """Number of slices."""
    position: tuple[float, ...] = ()
    """Slice positions, 0 lowest to 1 highest; by default spread evenly over the trained range."""
    temperature: float = 1.0
    """Divides the logits: below 1 for likelier and less diverse slices, above 1 for the reverse."""
    top_k: int | None = None
    """Sample each code from the k most likely codes."""
    top_p: float | None = None
    """Sample each code from the fewest most likely codes that reach this total probability."""
    seed: int = 0
    """Seed of the samples."""
    batch_size: int = 16
    """Slices sampled at a time; the samples do not depend on it."""
    condition: tuple[str, ...] = ()
    """Conditions of a prior with conditions, such as age=80 sex=F; the others are unknown. One of
    them may have several values, such as age=45,60,75: then COUNT slices of each."""
    guidance: float = 1.0
    """Weight of classifier-free guidance: above 1 the conditions have more effect."""

    def __post_init__(self):
        check_field(self, "count", lambda value: value >= 1, "at least 1")
        check_field(self, "seed", lambda value: value >= 0, "at least 0")
        check_field(self, "batch_size", lambda value: value >= 1, "at least 1")


@dataclass(frozen=True)
class ScoringConfig:
    """How slices are scored."""

    vqvae: Path | None = None
    """Run folder of the VQ-VAE, if it was moved after training."""
    codes: Path | None = None
    """File of the code grids of encode_codes.py, if it is not in the run folder of the VQ-VAE."""
    batch_size: int = 16
    """Slices scored at a time."""
    predict: bool = False
    """Write prediction_maps.npy, differences to what the prior predicts. Triples the time."""
    restore: int = 0
    """Restorations of each slice, with its surprising codes resampled, for restoration_maps.npy."""
    lesions: bool = False
    """Measure how well the maps find synthetic lesions. Takes minutes, with --restore longer."""
    seed: int = 0
    """Seed of the restorations and lesions."""

    def __post_init__(self):
        check_field(self, "batch_size", lambda value: value >= 1, "at least 1")
        check_field(self, "restore", lambda value: value >= 0, "at least 0")
        check_field(self, "seed", lambda value: value >= 0, "at least 0")


# Ten epochs of 5,000 slices of 572 codes take three quarters of an hour on two cores with AMX.
DEFAULT = Preset(
    model=PixelCNNConfig(
        channels=96,
        layers=10,
        kernel_size=3,
        first_kernel_size=7,
        attention_layers=2,
        attention_heads=4,
        condition_width=64,
        position_frequencies=8,
        head_width=256,
        dropout=0.1,
        scan="turned",
    ),
    training=PixelCNNTraining(
        epochs=10,
        batch_size=8,
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=200,
        beta_2=0.99,
        gradient_clip=1.0,
        optimizer="muon",
        average=0.995,
        patience=0,
        variants=5,
    ),
)

# A third of the arithmetic of `default`, for laptops.
SMALL = Preset(
    model=replace(DEFAULT.model, channels=64, layers=8, attention_layers=1, head_width=192),
    training=replace(DEFAULT.training, epochs=3, learning_rate=4e-3, variants=3),
)

PRESETS: dict[str, Preset[PixelCNNConfig, PixelCNNTraining]] = {"default": DEFAULT, "small": SMALL}
