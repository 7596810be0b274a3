"""Run folders: atomic writes, JSON files, provenance, and loading of trained models."""

__all__ = []
