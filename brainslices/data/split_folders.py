"""Folders that name splits: siblings such as `train` and `test`, or `png_train` and `png_test`.

A single folder whose name ends with a split's name (`ses-test`, `scanner_test`) does not count: two
siblings must name different splits and agree in the rest of their names.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from brainslices.data.splits import SPLIT_NAMES, SPLITS

__all__ = ["find_split_folders"]

_WORDS = {name + noun: split for name, split in SPLIT_NAMES.items() for noun in ("", "set", "data")}
_BIDS_ENTITY = re.compile(r"[a-z]+-[A-Za-z0-9+]+")
_DECATHLON = re.compile(r"(images)(Tr|Val|Ts)")
_DECATHLON_SPLITS = {"Tr": "train", "Val": "validate", "Ts": "test"}


def find_split_folders(sources: Iterable[str]) -> dict[str, str]:
    """Find the folders that name splits.

    Args:
        sources: POSIX paths of files below the source.

    Returns:
        Folder name -> split, for each name of a folder that has a sibling of another split
        somewhere in the source.

    Example:
        >>> find_split_folders(["png_train/1.png", "png_test/2.png", "sub-1/ses-test/3.png"])
        {'png_train': 'train', 'png_test': 'test'}
    """
    # Parent and rest of the name -> split -> folder names
    siblings: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    folders = {folder for source in sources for folder in _parents(source)}
    for folder in sorted(folders):
        parent, _, name = folder.rpartition("/")
        for split, stem in _splits_in_name(name):
            siblings[parent, stem][split].append(name)
    names = {
        name: split
        for splits in siblings.values()
        if len(splits) > 1
        for split, folder_names in splits.items()
        for name in folder_names
    }
    return dict(sorted(names.items(), key=lambda item: (SPLITS.index(item[1]), item[0])))


def _parents(source: str) -> list[str]:
    parts = source.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _splits_in_name(name: str) -> list[tuple[str, str]]:
    """The split that the first or the last word of a name is, with the rest of the name."""
    if match := _DECATHLON.fullmatch(name):
        return [(_DECATHLON_SPLITS[match[2]], match[1])]
    words = re.split(r"[_\-. ]|(?<=[a-z])(?=\d)", name.lower())
    if _BIDS_ENTITY.fullmatch(name) and words[0] not in _WORDS:
        return []
    words = [word for word in words if not word.isdecimal()] or words  # 1_train, 2_test
    rests = (words[-1], ("last", *words[:-1])), (words[0], ("first", *words[1:]))
    return [(_WORDS[word], " ".join(rest)) for word, rest in rests if word in _WORDS]
