"""Run folders: atomic files, provenance, and models read back."""

__all__ = []
