"""Data parallelism: devices of one host, and processes on several hosts."""

__all__ = []
