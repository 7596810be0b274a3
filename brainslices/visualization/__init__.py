"""Figures and contact sheets."""

__all__ = []
