"""The train, validate and test splits: their names, and which subjects belong to which."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from brainslices.errors import InputError

__all__ = ["SPLITS", "check_subject_splits", "normalize_split", "split_subjects"]

SPLITS = ("train", "validate", "test")
_ALIASES = {"training": "train", "validation": "validate", "val": "validate"}


def normalize_split(name: str) -> str:
    """Return the canonical name of a split.

    Raises:
        InputError: if `name` is not a split.

    Example:
        >>> normalize_split("Validation")
        'validate'
    """
    split = _ALIASES.get(name.lower(), name.lower())
    if split not in SPLITS:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={name!r}.")
    return split


def split_subjects(
    subjects: Iterable[str], fractions: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Assign subjects to the splits at random.

    With three subjects or more, every split with a positive fraction receives at least one.

    Args:
        subjects: names; their order and repetitions do not matter.
        fractions: fraction of the subjects for train, validate and test; they sum to 1.
        seed: seed of the assignment.

    Returns:
        Subject -> split.

    Example:
        >>> splits = split_subjects(["a", "b", "c"], (0.8, 0.1, 0.1), seed=0)
        >>> sorted(splits.values())
        ['test', 'train', 'validate']
    """
    names = sorted(set(subjects))
    quota = np.array(fractions) * len(names)
    counts = np.floor(quota + 1e-9).astype(int)
    for split in np.argsort(counts - quota, kind="stable")[: len(names) - counts.sum()]:
        counts[split] += 1
    if len(names) >= 3:
        for split in np.flatnonzero((counts == 0) & (quota > 0)):
            counts[counts.argmax()] -= 1
            counts[split] = 1
    order = np.random.default_rng(seed).permutation(len(names))
    splits = np.repeat(SPLITS, counts)
    return {names[row]: str(split) for row, split in zip(order, splits, strict=True)}


def check_subject_splits(records: Iterable[Any]) -> None:
    """Check that all records of a subject have the same split.

    Args:
        records: objects with the attributes `subject`, `split` and `source`.

    Raises:
        InputError: if a subject is in two splits.
    """
    first_of: dict[str, Any] = {}
    for record in records:
        first = first_of.setdefault(record.subject, record)
        if first.split != record.split:
            raise InputError(
                f"Subject {record.subject!r} is in two splits: in {first.split!r} by "
                f"{first.source} and in {record.split!r} by {record.source}. Keep all files of a "
                "subject in one split."
            )
