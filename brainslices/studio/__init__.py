"""The browser app: play with a trained prior and its VQ-VAE."""

__all__ = []
