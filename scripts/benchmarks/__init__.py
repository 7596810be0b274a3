"""Benchmarks of speed and memory beside baselines; not part of the installed packages."""

__all__ = []
