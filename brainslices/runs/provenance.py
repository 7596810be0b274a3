"""What a result depends on: versions, devices and content hashes."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

__all__ = ["environment", "file_hash"]


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(**facts: object) -> dict:
    """What a number depends on beside the code: versions, device, and the `facts` given."""
    import importlib.metadata

    import keras

    packages = ("keras", "tensorflow", "jax", "numpy", "scikit-image")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **facts,
    }
