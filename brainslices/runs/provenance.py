"""Provenance of a result: versions, devices and content hashes."""

import contextlib
import hashlib
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from brainslices.types import PathLike

__all__ = ["environment", "file_hash"]


def file_hash(path: PathLike) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    """Name of the processor on Linux, else of the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(**metadata: object) -> dict[str, Any]:
    """Collect what a result depends on besides the code: versions, devices, and `metadata`."""
    import importlib.metadata

    import keras

    packages = ("brainslices", "keras", "tensorflow", "jax", "numpy", "scikit-image")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        # The first word may hold the subcommand: "brainslices train-vqvae".
        "command": f"{sys.argv[0]} {shlex.join(sys.argv[1:])}".rstrip(),
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **metadata,
    }
