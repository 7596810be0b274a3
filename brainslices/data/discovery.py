"""Find the image or volume files below a source folder.

Every file is a `Candidate`. One that is not read carries the reason: it is hidden, its name marks
it as a mask (`seg` or `fseg`, as in `keras_png_slices_seg_train` or `seg_001_slice_0.png`), or its
format is not supported.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = ["Candidate", "SourceFiles", "find_candidates", "find_files", "strip_suffixes"]

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    "volume": (".nii", ".nii.gz", ".hdr", ".img"),
}
_MASK = re.compile(r"(^|[_.])f?seg([_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """A file below the source.

    Args:
        path: path of the file.
        kind: "image" or "volume"; None if the format is not supported.
        excluded: why the file is not read; None if it is.
    """

    path: Path
    kind: str | None
    excluded: str | None = None


@dataclass(frozen=True)
class SourceFiles:
    """The files to read, all of one kind.

    Args:
        root: folder that the `source` of every record is relative to.
        kind: "image" or "volume".
        paths: paths of the files, sorted.
        excluded: number of files that are not read, by reason.
    """

    root: Path
    kind: str
    paths: Sequence[Path]
    excluded: Counter[str]


def find_files(source: PathLike) -> SourceFiles:
    """Find the images or volumes below a folder, at any depth, or take a single file.

    Raises:
        InputError: if the source does not exist, or holds neither images nor volumes, or both.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a folder of images or volumes.")
    candidates = find_candidates(source)
    excluded = Counter(item.excluded for item in candidates if item.excluded)
    paths = {
        kind: sorted(item.path for item in candidates if item.kind == kind and not item.excluded)
        for kind in SUFFIXES
    }
    images, volumes = paths["image"], paths["volume"]
    if images and volumes:
        raise InputError(
            f"{source} holds images ({images[0]}) and volumes ({volumes[0]}). Give a folder that "
            "holds one kind, or move the other kind out of it."
        )
    if not images and not volumes:
        reasons = ", ".join(f"{count} {reason}" for reason, count in excluded.items())
        raise InputError(
            f"{source} holds no images ({', '.join(SUFFIXES['image'])}) and no volumes "
            f"({', '.join(SUFFIXES['volume'])}). Excluded files: {reasons or 'none'}. Give the "
            "folder of the images or volumes."
        )
    return SourceFiles(
        root=source.parent if source.is_file() else source,
        kind="image" if images else "volume",
        paths=images or volumes,
        excluded=excluded,
    )


def find_candidates(source: PathLike) -> list[Candidate]:
    """List every file below a folder, at any depth, with the reason if it is not to be read."""
    source = Path(source)
    if source.is_file():
        kind = _file_kind(source)
        return [Candidate(source, kind, None if kind else "of an unsupported format")]
    files = [path for path in source.rglob("*") if path.is_file()]
    headers = {file.with_suffix("") for file in files if file.suffix.lower() == ".hdr"}
    candidates = []
    for file in files:
        kind, excluded = _file_kind(file), None
        parts = file.relative_to(source).parts
        if any(part.startswith(".") for part in parts):
            excluded = "hidden"
        elif any(_MASK.search(part) for part in parts):
            excluded = "with the name of a mask"
        elif kind is None:
            excluded = "of an unsupported format"
        elif file.suffix.lower() == ".img" and file.with_suffix("") in headers:
            excluded = "read through their .hdr"
        candidates.append(Candidate(file, kind, excluded))
    return candidates


def strip_suffixes(name: str) -> str:
    """Return a file name without the suffixes of its format.

    Example:
        >>> strip_suffixes("case_001_slice_0.nii.png"), strip_suffixes("sub-01_T1w.nii.gz")
        ('case_001_slice_0', 'sub-01_T1w')
    """
    for suffix in (*SUFFIXES["image"], ".gz", ".nii", ".hdr", ".img"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _file_kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)
