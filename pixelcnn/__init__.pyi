from .config import PRESETS, PixelCNNConfig, PixelCNNTraining
from .distribution import CodePrior
from .model import PixelCNN
from .sampling import Sampler
from .slice_prior import SlicePrior
from .training import train

__all__ = [
    "CodePrior",
    "PRESETS",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelCNNTraining",
    "Sampler",
    "SlicePrior",
    "train",
]
