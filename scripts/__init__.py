"""The commands. In a wheel this folder is the package `brainslices_commands`."""

__all__ = []
