from .config import PRESETS, VQVAEConfig
from .model import VQVAE
from .quantizer import VectorQuantizer, VectorQuantizerEMA
from .training import train

__all__ = [
    "PRESETS",
    "VQVAE",
    "VQVAEConfig",
    "VectorQuantizer",
    "VectorQuantizerEMA",
    "train",
]
