"""Benchmarks of speed and memory, beside baselines."""

__all__ = []
