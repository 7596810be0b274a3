"""Recognise masks and label maps, by the conventions of their names and by their values.

Names alone miss label maps (`tissue.nii.gz`), and values alone miss probability maps (`probseg`):
a file is a label map if either says so.
"""

import re
from collections.abc import Sequence

import numpy as np

__all__ = [
    "FAINT_SPAN",
    "has_label_name",
    "is_faint",
    "is_label_map",
    "is_lossy_mask",
    "is_tissue_map",
]

# BIDS suffixes, tissue maps of FSL, ANTs and the MNI template, FreeSurfer's files, Medical
# Segmentation Decathlon's folders, and common words.
_LABEL_WORDS = (
    r"[a-z]*segs?\d*|wmparc|parc|parcellations?|aparc|ribbon|segmentations?|posteriors?\d*|"
    r"[a-z]*masks?\d*|msk|labels?\d*|labelmaps?|labels?(tr|ts|val)|gt|(ground)?truth|annotations?|"
    r"[gw]m|csf|pve|mixeltype|probtissue"
)
_LABEL_WORD = re.compile(_LABEL_WORDS, re.IGNORECASE)
# Words that also name a diagnosis (`no_lesion/`): only as the last word of a file name.
_LAST_WORD = re.compile(r"lesions?|roi", re.IGNORECASE)
# FreeSurfer's brainmask.mgz holds the intensities of the brain; its values decide.
_INTENSITY_NAMES = ("brainmask.mgz", "brainmask.auto.mgz", "brain.mgz")
_SEPARATORS = re.compile(r"[_.+ ]")
# BrainExtractionMask; at least three letters, because wmSub01 is a warped scan of SPM.
_CAMEL_CASE = re.compile(r"(?:[A-Z]?[a-z]{3,}|[A-Z][a-z]{2})\d*")
_BIDS_ENTITY = re.compile(
    r"(sub|ses|acq|ce|trc|rec|dir|run|mod|echo|flip|inv|mt|part|space|split|res|den|desc|label|"
    r"task|hemi|cohort|tpl|from|to|mode)-.+",
    re.IGNORECASE,
)

# SPM puts c1 to c6 before the name of the scan, CAT12 p0 to p6, and both r, s, m, w before that;
# `c1.nii`, `c1_T1w.nii` and `p01_T1w.nii` are rather the scans of control 1 and patient 1.
_SPM_TISSUE = re.compile(r"[rsmw]*c[1-6][^._]|[rsmw0]*p[0-6][^._\d]", re.IGNORECASE)
_MAX_TISSUE = 3 + 1e-3  # classes of CAT12's p0; modulated probabilities exceed 1

_FEW_VALUES = 16  # no scan and no slice of a scan has as few
_MAX_LABELS = 2000  # parcellations have up to about 1000 labels
# Share of equal pairs of neighbours, times the mean |log ratio| of the counts of adjacent values.
# Measured: 0.56 and more in label maps, the least in parcellations into equal parts; 0.01 in scans
# of 8 bits; up to 0.33 in scans that were smoothed, posterised or enlarged without interpolation.
_MIN_LABEL_SCORE = 0.45
# Share of the voxels that are not 0 which reach 1 in a probability map, at least.
_CERTAIN_SHARE = 0.25
_PLANES = 9  # planes that a volume is first judged by
FAINT_SPAN = 32  # grey levels
# Share of the pixels off the background that lie this close to their most frequent value: 12 of 255
# grey levels, fewer in a dark image. Measured: 0.85 and more in JPEG masks down to quality 20, at
# most 0.38 in slices of OASIS-1.
_LOSSY_SPAN, _LOSSY_SHARE = 12 / 255, 0.65
_FAINT_AREA = 0.01


def has_label_name(parts: Sequence[str]) -> bool:
    """Return whether a path has the name of a mask, a label map or a probability map.

    Args:
        parts: folders and file name below the source.

    Example:
        >>> has_label_name(["sub-01", "anat", "sub-01_desc-brain_mask.nii.gz"])
        True
        >>> has_label_name(["OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img"])
        False
    """
    *folders, name = parts
    if name.lower() in _INTENSITY_NAMES:
        name = ""
    words = [word for part in (*folders, name) for word in _words(part)]
    stem = re.sub(r"(\.[a-z]{2,4}){1,2}$", "", name, flags=re.IGNORECASE)
    last = [w for w in _words(stem) if not w.isdecimal() and w.lower() != "slice"]
    return any(map(_LABEL_WORD.fullmatch, words)) or any(map(_LAST_WORD.fullmatch, last[-1:]))


def _words(part: str) -> list[str]:
    """Split a name into its words; BIDS entities such as `label-GM` are left out."""
    words = []
    for token in _SEPARATORS.split(part):
        if not _BIDS_ENTITY.fullmatch(token):
            words += [token, *token.split("-"), *_CAMEL_CASE.findall(token)]
    return words


def is_label_map(values: np.ndarray) -> bool:
    """Return whether the values of an image or volume are labels instead of intensities.

    Labels are at most 16 distinct values; or up to 2000 of them in regions of equal value, whose
    histogram has no continuity. So are probabilities that are mostly 0 or 1. A constant array holds
    no labels.

    Args:
        values: pixels or voxels of any real dtype, of shape (rows, cols) or (x, y, z).

    Example:
        >>> is_label_map(np.array([[0, 1, 2], [0, 3, 3]]))
        True
        >>> is_label_map(np.arange(100).reshape(10, 10))
        False
    """
    if values.ndim == 3:
        rows = np.unique(np.linspace(0, values.shape[2] - 1, _PLANES).round().astype(int))
        planes = values[..., rows]
    else:
        planes = values
    distinct, counts = _distinct(planes)
    if len(distinct) > _MAX_LABELS:
        return _are_probabilities(planes)
    if len(distinct) > _FEW_VALUES:
        jump = np.abs(np.diff(np.log(counts))).mean()
        score = jump * _equal_neighbours(planes, distinct[counts.argmax()])
        return bool(score > _MIN_LABEL_SCORE) or _are_probabilities(planes)
    if planes.size < values.size:  # the other planes may hold more
        distinct, _ = _distinct(values)
    return 2 <= len(distinct) <= _FEW_VALUES


def is_tissue_map(name: str, voxels: np.ndarray) -> bool:
    """Return whether a volume is a tissue map of SPM or CAT12: `c1` or `p1`, then its scan's name.

    Example:
        >>> is_tissue_map("c1sub-01_T1w.nii", np.array([0, 0.5, 1.0]))
        True
        >>> is_tissue_map("c1_T1w.nii", np.array([0, 412, 977.0]))
        False
    """
    return bool(_SPM_TISSUE.match(name) and voxels.min() >= 0 and voxels.max() <= _MAX_TISSUE)


def is_lossy_mask(pixels: np.ndarray) -> bool:
    """Return whether an image is a mask of two values, blurred by a lossy format such as JPEG.

    Args:
        pixels: uint8 of shape (rows, cols).
    """
    counts = np.bincount(pixels.ravel(), minlength=256)
    background = counts.argmax()
    counts[max(background - FAINT_SPAN, 0) : background + FAINT_SPAN + 1] = 0
    peak = counts.argmax()
    span = round(_LOSSY_SPAN * (int(pixels.max()) - int(pixels.min())))
    near = counts[max(peak - span, 0) : peak + span + 1].sum()
    return bool(near > _LOSSY_SHARE * counts.sum() > 0)


def is_faint(pixels: np.ndarray) -> bool:
    """Return whether an image is nearly black, as a slice above the head is.

    Such a slice has few values too; the other slices of its stack tell whether they are labels.
    """
    background = np.bincount(pixels.ravel()).argmax() if pixels.dtype == np.uint8 else pixels.min()
    area = np.count_nonzero(pixels != background) / pixels.size
    return bool(area < _FAINT_AREA or float(pixels.max()) - float(pixels.min()) <= FAINT_SPAN)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct finite values, ascending, and their counts."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(values[np.isfinite(values)], return_counts=True)


def _are_probabilities(values: np.ndarray) -> bool:
    """Whether values in [0, 1] are mostly certain, which intensities that are clipped are not."""
    if values.dtype.kind in "iu":  # whole numbers have no probabilities between
        return False
    finite = values[np.isfinite(values)]
    if finite.min() < 0 or finite.max() > 1 + 1e-3:
        return False
    return bool((finite[finite != 0] > 0.98).mean() > _CERTAIN_SHARE)


def _equal_neighbours(values: np.ndarray, background: float) -> float:
    """Fraction of equal pairs among the neighbours in the plane that are not all background."""
    equal = pairs = 0
    neighbours = (values[:-1], values[1:]), (values[:, :-1], values[:, 1:])
    for first, second in neighbours:
        inside = (first != background) | (second != background)
        pairs += int(inside.sum())
        equal += int((inside & (first == second)).sum())
    return equal / max(pairs, 1)
