"""Packaging of brainslices."""

from setuptools import find_packages, setup

PACKAGES = ["brainslices", "vqvae", "pixelcnn", "tuning"]

setup(
    name="brainslices",
    version="0.1.0",
    description="Discrete codes and novel samples of brain MRI slices: VQ-VAE and gated PixelCNN",
    license="MIT",
    python_requires=">=3.11",
    # The commands are installed as a package of their own; scripts/benchmarks stays in the clone.
    packages=[
        *find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
        "brainslices_commands",
    ],
    package_dir={"brainslices_commands": "scripts"},
    package_data={
        **{name: ["py.typed", "*.pyi"] for name in PACKAGES},
        "brainslices.report": ["templates/*"],
    },
    entry_points={"console_scripts": ["brainslices = brainslices_commands.__main__:main"]},
    install_requires=[
        "tensorflow>=2.21,<2.23",
        "keras>=3.15,<3.17",
        "tensorflow-probability[tf]>=0.25,<0.27",
        "keras-tuner>=1.4.8,<1.5",
        "tensorboard>=2.20,<2.23",
        "numpy>=2.0,<3",
        "scipy>=1.15,<2",
        "scikit-image>=0.26,<0.28",
        "scikit-learn>=1.6,<2",
        "threadpoolctl>=3.5,<4",
        "matplotlib>=3.10,<4",
        "jinja2>=3.1,<4",
        "plotly>=6,<8",
        "pillow>=12,<15",
        "pillow-jxl-plugin>=1.3,<2",
        "nibabel>=5.3,<6",
        "tyro>=1.0,<2",
        "tqdm>=4.67,<5",
        "rich>=14,<17",
        "filelock>=3.16,<5",
        "lazy-loader>=0.4,<1",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.23"],
        "jax": ["jax>=0.10,<0.12"],
        "export": ["onnx>=1.20,<2", "tf2onnx>=1.17,<2", "onnxruntime>=1.23,<2"],
        "studio": ["gradio>=6.30,<7"],
        "docs": [
            "sphinx>=8,<10",
            "myst-parser>=4,<6",
            "myst-nb>=1.2,<2",
            "furo>=2024.8",
            "sphinx-copybutton>=0.5,<1",
            "ipykernel>=6,<8",
        ],
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14",
            "mypy>=1.15,<3",
            "jax>=0.10,<0.12",
            "psutil>=6,<8",
            "playwright>=1.60,<2",
            "axe-playwright-python>=0.1.5,<1",
        ],
    },
)
