"""Types and ranges of the fields that the files of archives, code grids and runs hold."""

import numbers
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from brainslices.errors import InputError

__all__ = [
    "CODEBOOK_SIZE",
    "COUNTS",
    "INTEGER",
    "MAX_SIDE",
    "NATURAL",
    "NUMBER",
    "OBJECT",
    "OPTIONAL_NUMBER",
    "POSITIONS",
    "POSITIVE",
    "SHA256",
    "SHAPE",
    "SIDE",
    "STRING",
    "Rule",
    "check_arguments",
    "check_fields",
]


class Rule(NamedTuple):
    """What a field must be."""

    is_valid: Callable[[Any], bool]
    expectation: str
    """The same in words."""


# An integer beyond 64 bits fits no array, and one of 400 digits no float.
INTEGER = Rule(
    lambda value: _is(value, numbers.Integral) and abs(value) < 2**63,
    "an integer",
)
NATURAL = Rule(lambda value: INTEGER.is_valid(value) and value >= 0, "an integer, at least 0")
NUMBER = Rule(
    lambda value: (
        INTEGER.is_valid(value) or _is(value, numbers.Real) and abs(value) <= sys.float_info.max
    ),
    "a finite number",
)
OPTIONAL_NUMBER = Rule(
    lambda value: value is None or NUMBER.is_valid(value), "a finite number or null"
)
POSITIVE = Rule(lambda value: INTEGER.is_valid(value) and value >= 1, "a positive integer")
STRING = Rule(lambda value: isinstance(value, str), "a string")
SHA256 = Rule(
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "64 hexadecimal digits",
)
# Codes are stored as uint16; no slice has more pixels along a side.
CODEBOOK_SIZE = Rule(
    lambda value: POSITIVE.is_valid(value) and value <= 2**16,
    "an integer from 1 to 65,536",
)
MAX_SIDE = 2**15
SIDE = Rule(
    lambda value: POSITIVE.is_valid(value) and value <= MAX_SIDE, "an integer from 1 to 32,768"
)
SHAPE = Rule(
    lambda value: (
        isinstance(value, list | tuple) and len(value) == 2 and all(map(SIDE.is_valid, value))
    ),
    "two integers from 1 to 32,768",
)
OBJECT = Rule(lambda value: isinstance(value, dict), "an object")
COUNTS = Rule(OBJECT.is_valid, "an object of counts for each split")
POSITIONS = Rule(
    lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(NUMBER.is_valid(item) and 0 <= item <= 1 for item in value)
    ),
    "a list of numbers in [0, 1]",
)


def _holds(is_valid, value):
    try:
        return is_valid(value)
    except (TypeError, AttributeError, ValueError):  # a value of another type than the rule's
        return False


def _is(value, number_type):
    return isinstance(value, number_type) and not isinstance(value, bool)


def check_fields(
    stored: Any, rules: Mapping[str, Rule], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields that have rules, checked; other fields are ignored.

    Args:
        stored: what should be an object of fields.
        rules: field -> rule.
        optional: fields that may be missing.

    Raises:
        ValueError: if a field is missing or breaks its rule.

    Example:
        >>> check_fields({"image_shape": [176, 208]}, {"image_shape": SHAPE})
        {'image_shape': [176, 208]}
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"it must hold an object of fields. Received: {str(stored)[:100]}")
    if missing := sorted(set(rules) - set(stored) - set(optional)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    fields = {name: stored[name] for name in rules if name in stored}
    for name, value in fields.items():
        is_valid, expectation = rules[name]
        if not _holds(is_valid, value):
            received = repr(value)[:100]
            raise ValueError(f"`{name}` must be {expectation}. Received: {name}={received}")
    return fields


def check_arguments(rules: Mapping[str, Rule], **arguments: object) -> None:
    """Check the arguments of a function.

    Raises:
        InputError: if one breaks its rule.
    """
    try:
        check_fields(arguments, rules)
    except ValueError as error:
        raise InputError(f"{error}.") from error
