"""One self-contained HTML page about runs, reconstructions, samples and a search."""

__all__ = []
