"""Slices: archives, and the images, volumes and phantoms they come from."""

__all__ = []
