"""Types and ranges of the fields that the archive's and the code grids' files hold."""

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["COUNTS", "INTEGER", "POSITIVE", "SHA256", "SHAPE", "STRING", "Rule", "check_fields"]

Rule = tuple[Callable[[Any], bool], str]
"""A predicate, and the expectation in words."""
INTEGER: Rule = (lambda value: type(value) is int, "an integer")
POSITIVE: Rule = (lambda value: type(value) is int and value >= 1, "a positive integer")
STRING: Rule = (lambda value: isinstance(value, str), "a string")
SHA256: Rule = (
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "64 hexadecimal digits",
)
SHAPE: Rule = (
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(POSITIVE[0], value)),
    "two positive integers",
)
COUNTS: Rule = (lambda value: isinstance(value, dict), "an object of counts for each split")


def check_fields(stored: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the fields that have rules, checked; other fields are ignored.

    Raises:
        ValueError: if a field is missing or breaks its rule.

    Example:
        >>> check_fields({"image_shape": [176, 208]}, {"image_shape": SHAPE})
        {'image_shape': [176, 208]}
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"it must hold an object of fields. Received: {str(stored)[:100]}")
    if missing := sorted(set(rules) - set(stored)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, (is_valid, expectation) in rules.items():
        if not is_valid(stored[name]):
            value = repr(stored[name])[:100]
            raise ValueError(f"`{name}` must be {expectation}. Received: {name}={value}")
    return {name: stored[name] for name in rules}
