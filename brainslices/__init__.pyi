from .config import TrainingConfig
from .data.archive import SliceArchive, SliceRecord
from .data.archive_writer import write_archive
from .data.crop import CropBox
from .errors import InputError
from .runs.run import Run

__all__ = [
    "CropBox",
    "InputError",
    "Run",
    "SliceArchive",
    "SliceRecord",
    "TrainingConfig",
    "write_archive",
]
