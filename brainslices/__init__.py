"""What both stages share: brain slices in, runs, scores and figures out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archive": ["CropBox", "SliceArchive", "SliceRecord", "write_archive"],
        "config": ["TrainingConfig"],
        "errors": ["InputError"],
        "runs": ["Run"],
    },
)
