"""Slice archives, and the images, volumes and phantoms that they are prepared from."""

__all__ = []
