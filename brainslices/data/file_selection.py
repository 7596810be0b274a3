"""Which files of a source are read, and how their subjects and splits are named: the flags."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileSelection"]


@dataclass(frozen=True, kw_only=True)
class FileSelection:
    """Which files of a source are read, and how their subjects and splits are named."""

    pattern: str | None = None
    """Regular expression for paths below the source, with groups `subject` and `slice` (optional).

    Default: the names of the public release, OASIS, BIDS, ADNI and IXI; for volumes, else the file
    name."""
    table: Path | None = None
    """CSV or TSV with columns file, subject, split, position (0 to 1), or a participants.tsv.

    At least one of file and subject; a table of files lists all that are read."""
    include: tuple[str, ...] = ()
    """Globs of files or folders to read, such as '*_T1w.nii.gz'. Default: all."""
    exclude: tuple[str, ...] = ()
    """Globs of files or folders to leave out, such as func '*_T2w.*'."""
    split_folders: bool = True
    """Take sibling folders such as train and test for splits."""
    label_maps: bool = False
    """Read masks and label maps as if they were images, instead of leaving them out."""
