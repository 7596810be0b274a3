"""Packaging of brainslices."""

from setuptools import find_packages, setup

setup(
    name="brainslices",
    version="0.1.0",
    description="Discrete codes and novel samples of brain MRI slices: VQ-VAE and gated PixelCNN",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(exclude=["tests", "tests.*", "scripts", "scripts.*"]),
    install_requires=[
        "tensorflow>=2.21",
        "keras>=3.15",
        "tensorflow-probability[tf]>=0.25",
        "keras-tuner>=1.4.8",
        "tensorboard>=2.20",
        "numpy>=2.0",
        "scipy>=1.15",
        "scikit-image>=0.26",
        "scikit-learn>=1.6",
        "threadpoolctl>=3.5",
        "matplotlib>=3.10",
        "pillow>=12",
        "nibabel>=5.3",
        "tyro>=1.0",
        "tqdm>=4.67",
        "rich>=14",
        "filelock>=3.16",
        "lazy-loader>=0.4",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "jax": ["jax>=0.10"],
        "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "jax>=0.10", "psutil>=6"],
    },
)
