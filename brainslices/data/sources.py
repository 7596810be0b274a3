"""The files of a source that are read, with their metadata.

Files are selected by their names first. Then each is opened once to leave out label maps by their
values, before subjects are assigned to splits and positions are computed.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from brainslices.data.discovery import (
    LABEL_NAME,
    SourceFiles,
    describe_excluded,
    matches,
    only_label_maps,
)
from brainslices.data.file_selection import FileSelection
from brainslices.data.label_maps import is_faint, is_label_map, is_lossy_mask, is_tissue_map
from brainslices.data.metadata import FileMetadata, read_metadata
from brainslices.data.prefetch import prefetch
from brainslices.data.source_table import SourceTable, read_table
from brainslices.data.split_folders import find_split_folders
from brainslices.errors import InputError
from brainslices.progress import track
from brainslices.reading import reading

__all__ = ["LABEL_REASONS", "leave_out_label_maps", "read_source"]

LABEL_VALUES = "masks or label maps, by their values"
LABEL_REASONS = (LABEL_NAME, LABEL_VALUES)
# What the values of a file show.
SCAN, LABELS, FAINT, BLANK, UNREADABLE = "scan", "labels", "faint", "blank", "unreadable"
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_CONTRAST = re.compile(
    r"(?<![a-z0-9])(T1w?|T2w?|PDw?|FLAIR|T1c|T1ce|T1gd|T2starw|inplaneT[12]|bold|sbref|dwi|epi|asl|"
    r"m0scan|magnitude[12]?|phase(diff|[12])?|angio|SWI|CT|PET)(?![a-z0-9])",
    re.IGNORECASE,
)
logger = logging.getLogger(__name__)


def read_source(
    files: SourceFiles,
    selection: FileSelection,
    *,
    require_subject: bool = True,
    report: Callable[[str], None] = logger.info,
) -> tuple[SourceFiles, list[FileMetadata]]:
    """Leave out label maps and what the table does not list, and read the metadata of the rest.

    Args:
        files: from `find_files`, with the same selection.
        selection: which files, and how they are named.
        require_subject: as in `read_metadata`.
        report: receives a line for what is taken, and one for each reason of exclusion.

    Returns:
        The files that remain, and their metadata as of `read_metadata`.

    Raises:
        InputError: if a file, the table or the pattern cannot be used, or only label maps remain.
    """
    sources = (path.relative_to(files.root).as_posix() for path in files.paths)
    split_folders = find_split_folders(sources) if selection.split_folders else {}
    table = read_table(selection.table) if selection.table else None
    if table and table.lists_files:
        files = replace(files, paths=_listed_files(table, files.root, selection))
    if not selection.label_maps:
        files = leave_out_label_maps(files)
    metadata = read_metadata(
        files,
        selection.pattern,
        table,
        split_folders=split_folders,
        require_subject=require_subject,
    )
    for line in _describe(files, metadata):
        report(line)
    return files, metadata


def leave_out_label_maps(files: SourceFiles) -> SourceFiles:
    """Open every file and leave out those whose values are labels.

    A nearly black image in a stack of images has few values but is no label map. A file that
    cannot be opened is kept: its reader refuses it by name.

    Raises:
        InputError: if no other file remains.
    """
    classify = _classify_image if files.kind == "image" else _classify_volume
    with closing(prefetch(classify, files.paths)) as results:
        classes = list(track(results, len(files.paths), "Checking", "files"))
    class_of = dict(zip(files.paths, classes, strict=True))
    scans = {_stack(path) for path, kind in class_of.items() if kind == SCAN}
    label_maps = [
        path
        for path, kind in class_of.items()
        if kind == LABELS or (kind == FAINT and _stack(path) not in scans)
    ]
    if not label_maps:
        return files
    excluded = {**files.excluded, LABEL_VALUES: label_maps}
    left_out = set(label_maps)
    paths = [path for path in files.paths if path not in left_out]
    if not paths:
        raise only_label_maps(files.root, files.root, excluded)
    return replace(files, paths=paths, excluded=excluded)


def _stack(path: Path) -> tuple[Path, str]:
    """What the slices of a stack have in common: the folder, and the name but for its last number.

    Example:
        >>> _stack(Path("a/case_001_slice_12.png"))[1]
        'case_001_slice_#.png'
    """
    return path.parent, _LAST_NUMBER.sub("#", path.name)


def _classify_image(path: Path) -> str:
    try:
        with reading(path, "image", ""), Image.open(path) as file:
            pixels = np.asarray(file)
    except InputError:
        return UNREADABLE
    channel = pixels[..., 0] if pixels.ndim == 3 else pixels
    if not channel.size or channel.min() == channel.max():
        return BLANK
    if is_label_map(channel) or (channel.dtype == np.uint8 and is_lossy_mask(channel)):
        return FAINT if is_faint(channel) else LABELS
    return SCAN


def _classify_volume(path: Path) -> str:
    from brainslices.data.volume_files import load_volume

    try:
        voxels, _ = load_volume(path)
    except InputError:
        return UNREADABLE
    return LABELS if is_label_map(voxels) or is_tissue_map(path.name, voxels) else SCAN


def _listed_files(table: SourceTable, root: Path, selection: FileSelection) -> list[Path]:
    """The files of a table, without those that --include and --exclude leave out."""
    paths, include, exclude = [], selection.include, selection.exclude
    for row in table.rows:
        if matches([row.file], exclude) or (include and not matches([row.file], include)):
            continue
        path = root / row.file
        if not path.is_file() or not path.is_relative_to(root):
            raise InputError(
                f"{table.path}, line {row.line}: `file` must be a file below {root}. Received: "
                f"file={row.file!r}, subject={row.subject!r}."
            )
        paths.append(path)
    if not paths:
        raise InputError(
            f"--include and --exclude leave out all {len(table.rows)} files of the table "
            f"{table.path}. Received: include={include}, exclude={exclude}."
        )
    return paths


def _describe(files: SourceFiles, metadata: Sequence[FileMetadata]) -> list[str]:
    """Lines for what is taken, by contrast, and for what is left out, by reason."""
    of_contrast = defaultdict(list)
    for item in metadata:
        contrasts = _CONTRAST.findall(item.source.rsplit("/", 1)[-1])
        of_contrast[contrasts[-1][0] if contrasts else ""].append(item.source)
    lines = [
        f"read      {len(sources)} {f'{contrast} {files.kind}s'.strip()}, e.g. {min(sources)}"
        for contrast, sources in sorted(of_contrast.items())
    ]
    if len({contrast.lower().removesuffix("w") for contrast in of_contrast}) > 1:
        kinds = ", ".join(contrast or "others" for contrast in sorted(of_contrast))
        logger.warning(
            "The files have several contrasts (%s). Read one of them by --include, for example "
            "--include '*%s*'.",
            kinds,
            max(of_contrast, key=lambda contrast: (bool(contrast), len(of_contrast[contrast]))),
        )
    return lines + [f"left out  {line}" for line in describe_excluded(files.excluded, files.root)]
