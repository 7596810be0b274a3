"""Figures and contact sheets."""

__all__: list[str] = []
