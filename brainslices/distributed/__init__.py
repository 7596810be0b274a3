"""Several devices and several processes."""

__all__ = []
