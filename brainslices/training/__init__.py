"""One training loop for both stages."""

__all__ = []
