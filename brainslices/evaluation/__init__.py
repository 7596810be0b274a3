"""Scores of reconstructions and of samples."""

__all__: list[str] = []
