"""Scores of reconstructions and of samples."""

__all__ = []
