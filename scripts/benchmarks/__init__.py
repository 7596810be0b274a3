"""Benchmarks of speed and memory, compared with baselines; not part of the installed packages."""

__all__ = []
