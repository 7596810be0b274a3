"""Find the image or volume files below a source folder.

A file that is not read carries the reason: it is hidden, has the name of a mask, is of an
unsupported format, is no regular file, or `include` and `exclude` leave it out. A file that should
be read but cannot be reached is an error: a link without a target, a file that git-annex or Git LFS
has not fetched, a folder without read permission.
"""

import fnmatch
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from brainslices.data.file_selection import FileSelection
from brainslices.data.label_maps import has_label_name
from brainslices.errors import InputError
from brainslices.types import PathLike

__all__ = [
    "SourceFiles",
    "describe_excluded",
    "find_files",
    "matches",
    "only_label_maps",
    "strip_suffixes",
]

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    "volume": (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz", ".mgh", ".mgz"),
}
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
LABEL_NAME = "masks or label maps, by their names"
DICOM = "DICOM (convert them to NIfTI with dcm2niix)"
HIDDEN = "hidden"
NOT_INCLUDED = "not matched by --include"
EXCLUDED = "left out by --exclude"
UNSUPPORTED = "of an unsupported format"
PAIRED = "read through their .hdr"
SPECIAL = "no regular files (FIFO, socket or device)"
LINKED_TWICE = "folder links to a folder that is read already"
_POINTER_SIZE = 1024  # bytes; the placeholder of a large file is shorter
_POINTERS = {b"/annex/objects/": "git annex get", b"version https://git-lfs": "git lfs pull"}


@dataclass(frozen=True)
class _Candidate:
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
        excluded: the files that are not read, by reason.
    """

    root: Path
    kind: str
    paths: Sequence[Path]
    excluded: Mapping[str, Sequence[Path]]


def find_files(source: PathLike, selection: FileSelection | None = None) -> SourceFiles:
    """Find the images or volumes below a folder, at any depth, or take a single file.

    Args:
        source: the folder, or one file.
        selection: its `include`, `exclude` and `label_maps` count.

    Raises:
        InputError: if the source does not exist, holds neither images nor volumes, or both, or if
            a part of it cannot be reached.
    """
    source, selection = Path(source), selection or FileSelection()
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a folder of images or volumes.")
    candidates = _find_candidates(source, selection)
    excluded = defaultdict(list)
    for item in candidates:
        if item.excluded:
            excluded[item.excluded].append(item.path)
    paths = {
        kind: sorted(item.path for item in candidates if item.kind == kind and not item.excluded)
        for kind in SUFFIXES
    }
    images, volumes = paths["image"], paths["volume"]
    root = source if source.is_dir() else source.parent
    if images and volumes:
        raise InputError(
            f"{source} holds images ({images[0]}) and volumes ({volumes[0]}). Give a folder that "
            "holds one kind, or choose one by --include, for example --include '*.nii.gz'."
        )
    if not images and not volumes:
        raise _nothing_to_read(source, root, excluded)
    kind = "image" if images else "volume"
    return SourceFiles(root, kind, images or volumes, dict(excluded))


def _nothing_to_read(source: Path, root: Path, excluded: Mapping[str, list[Path]]) -> InputError:
    if LABEL_NAME in excluded and not {EXCLUDED, NOT_INCLUDED} & set(excluded):
        return only_label_maps(source, root, excluded)
    return InputError(
        f"{source} holds no images ({', '.join(SUFFIXES['image'])}) and no volumes "
        f"({', '.join(SUFFIXES['volume'])}) to read. Excluded files: "
        f"{'; '.join(describe_excluded(excluded, root)) or 'none'}. Give the folder of the images "
        "or volumes."
    )


def only_label_maps(source: Path, root: Path, excluded: Mapping[str, Sequence[Path]]) -> InputError:
    """Return the error of a source without any other images or volumes."""
    return InputError(
        f"{source} holds only masks and label maps: {'; '.join(describe_excluded(excluded, root))}."
        " Give the folder of the images or volumes, or read these all the same by --label-maps."
    )


def describe_excluded(excluded: Mapping[str, Sequence[Path]], root: Path) -> list[str]:
    """Describe the files that are not read: for each reason the count and an example."""
    return [
        f"{len(paths)} {reason}, e.g. {os.path.relpath(min(paths), root)}"
        for reason, paths in sorted(excluded.items(), key=lambda item: -len(item[1]))
    ]


def _find_candidates(source: Path, selection: FileSelection) -> list[_Candidate]:
    """List every file below a folder, at any depth, with the reason if it is not to be read."""
    if not source.is_dir():  # the user named it: only its format counts
        kind = _file_kind(source.name)
        candidates = [_Candidate(source, kind, _format_reason(source, kind, set()))]
    else:
        files = sorted(_walk(source, selection.exclude))
        headers = {_stem(path) for path, _ in files if ".hdr" in _suffixes(path)}
        candidates = []
        for path, reason in files:
            kind = _file_kind(path.name)
            reason = reason or _reason(path, path.relative_to(source), kind, selection, headers)
            candidates.append(_Candidate(path, kind, reason))
    _check_reachable(candidates)
    return candidates


def _walk(root: Path, exclude: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """All files below a folder, and the folders that are not entered with the reason.

    Links to folders are followed, and each folder is read once: real folders first, so that a link
    to one of them does not take its place. A link to a parent of the source leads nowhere new.
    """
    visited = {_identity(folder) for folder in root.resolve().parents}
    pending, links = [root], list[Path]()
    while pending or links:
        folder = pending.pop() if pending else links.pop(0)
        if _identity(folder) in visited:
            yield folder, LINKED_TWICE
            continue
        visited.add(_identity(folder))
        if not os.access(folder, os.R_OK | os.X_OK):
            if not matches([folder.relative_to(root).as_posix()], exclude):
                raise InputError(
                    f"The folder {folder} cannot be read: no permission. Change it, for example "
                    "by `chmod u+rx`, or leave the folder out by --exclude."
                )
            yield folder, EXCLUDED
            continue
        for path in sorted(map(Path, os.scandir(folder))):
            if not os.path.isdir(path):
                yield path, None
            elif path.name.startswith("."):
                yield path, HIDDEN
            else:
                (links if path.is_symlink() else pending).append(path)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _reason(
    path: Path, relative: Path, kind: str | None, selection: FileSelection, headers: set[Path]
) -> str | None:
    """Why a file is not read, or None."""
    names = [relative.as_posix()]
    if kind == "volume" and _stem(path) in headers:  # either name of a pair selects both files
        names += [f"{_stem(relative).as_posix()}{suffix}" for suffix in (".hdr", ".img")]
    if any(part.startswith(".") for part in relative.parts):
        return HIDDEN
    if matches(names, selection.exclude):
        return EXCLUDED
    if _is_lost_folder(path):
        return None
    if selection.include and not matches(names, selection.include):
        return NOT_INCLUDED
    if reason := _format_reason(path, kind, headers):
        return reason
    return LABEL_NAME if not selection.label_maps and has_label_name(relative.parts) else None


def _is_lost_folder(path: Path) -> bool:
    """Whether a path is a link without a target that may have led to a folder."""
    return not path.suffix and not os.path.exists(path)


def _format_reason(path: Path, kind: str | None, headers: set[Path]) -> str | None:
    if os.path.exists(path) and not path.is_file():
        return SPECIAL
    if kind is None:
        is_dicom = path.name.lower().endswith(_DICOM_SUFFIXES) or _has_dicom_magic(path)
        return DICOM if is_dicom else UNSUPPORTED
    return PAIRED if ".img" in _suffixes(path) and _stem(path) in headers else None


def _suffixes(path: Path) -> list[str]:
    return [suffix.lower() for suffix in path.suffixes[-2:]]


def matches(names: Sequence[str], globs: Sequence[str]) -> bool:
    """Whether a glob matches a path, its end, or one of the folders above it.

    Args:
        names: POSIX paths below the source.
        globs: as of `FileSelection`.
    """
    variants = {glob.strip("/") for glob in globs}
    variants |= {glob.replace("**/", "") for glob in variants}
    for parts in (name.split("/") for name in names if variants):
        spans = combinations(range(len(parts) + 1), 2)
        candidates = {"/".join(parts[start:end]) for start, end in spans}
        if any(fnmatch.fnmatchcase(path, glob) for path in candidates for glob in variants):
            return True
    return False


def _check_reachable(candidates: Sequence[_Candidate]) -> None:
    """Refuse links without a target and files whose content was not fetched."""
    lost = defaultdict(list)
    for item in candidates:
        if not item.excluded and (repair := _missing_content(item.path)):
            lost[repair].append(item.path)
    for repair, paths in lost.items():
        target = f" -> {os.readlink(paths[0])}" if paths[0].is_symlink() else ""
        raise InputError(
            f"{len(paths)} of the files to read have no content here, e.g. {paths[0]}{target}. "
            f"{repair}, or leave them out by --exclude."
        )


def _missing_content(path: Path) -> str | None:
    """The repair of a file whose content is elsewhere, or None."""
    if not path.exists():
        if "annex/objects" in os.readlink(path):
            return "Fetch them by `datalad get` or `git annex get`"
        return "Restore the targets of these links"
    if path.stat().st_size < _POINTER_SIZE:
        for magic, command in _POINTERS.items():
            if _start(path).startswith(magic):
                return f"Fetch them by `{command}`"
    return None


def _has_dicom_magic(path: Path) -> bool:
    return path.is_file() and _start(path)[128:] == b"DICM"


def _start(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, as its reader will say."""
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def strip_suffixes(name: str) -> str:
    """Return a file name without the suffixes of its format.

    Example:
        >>> strip_suffixes("case_001_slice_0.nii.png"), strip_suffixes("sub-01_T1w.nii.gz")
        ('case_001_slice_0', 'sub-01_T1w')
    """
    for suffix in (*SUFFIXES["image"], ".gz", ".nii", ".hdr", ".img", ".mgh", ".mgz"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _stem(path: Path) -> Path:
    return path.with_name(strip_suffixes(path.name))


def _file_kind(name: str) -> str | None:
    name = name.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)
