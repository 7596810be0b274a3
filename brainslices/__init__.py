"""What both stages share: brain slices in, runs, scores and figures out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data.archive": ["SliceArchive", "SliceRecord"],
        "data.archive_writer": ["write_archive"],
        "data.crop": ["CropBox"],
        "config": ["TrainingConfig"],
        "errors": ["InputError"],
        "runs.run": ["Run"],
    },
)
