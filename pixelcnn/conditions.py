"""Conditions of a prior: attributes of a subject, such as age, sex or diagnosis, as numbers."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainslices.data.subject_table import SubjectTable, is_numeric
from brainslices.errors import InputError

__all__ = [
    "UNKNOWN",
    "Variable",
    "add_subjects",
    "as_variables",
    "encode_request",
    "encode_subjects",
    "expand_request",
    "find_variables",
    "parse_request",
]

# Stands for a value that is not known.
UNKNOWN = -1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variable:
    """One condition, as the training subjects have it.

    Args:
        name: column of the table of subjects.
        low: lowest value of a numeric condition.
        high: highest value of a numeric condition.
        categories: values of a categorical condition; empty for a numeric one.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    categories: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(self.categories))  # a list in JSON

    def encode(self, text: str) -> float:
        """Encode a value for the model.

        A number is scaled so that [0, 1] is twice as wide as the trained range, with the same
        centre, and clipped to it; a category is its index. Blanks and categories that training did
        not have are `UNKNOWN`.

        Example:
            >>> age = Variable("age", 40, 80)
            >>> age.encode("40"), age.encode("60"), age.encode("100"), age.encode("")
            (0.25, 0.5, 1.0, -1.0)
        """
        if self.categories:
            return float(self.categories.index(text)) if text in self.categories else UNKNOWN
        if not text or not is_numeric([text]):
            return UNKNOWN
        centre, width = (self.low + self.high) / 2, self.high - self.low
        return min(max(0.5 + (float(text) - centre) / (2 * width), 0.0), 1.0)

    def check(self, text: str) -> None:
        """Check a requested value; warn if it is outside of the trained range.

        Raises:
            InputError: if it is an unknown category, not numeric, or outside of a range twice as
                wide as the trained one.
        """
        received = f"Received: {self.name}={text}."
        if self.categories:
            if text not in self.categories:
                known = ", ".join(self.categories)
                raise InputError(f"`condition` {self.name} must be one of {known}. {received}")
            return
        trained = f"{self.low:g} to {self.high:g}"
        margin = (self.high - self.low) / 2
        number = float(text) if text and is_numeric([text]) else math.nan
        if not self.low - margin <= number <= self.high + margin:
            raise InputError(
                f"`condition` {self.name} must be a number from {self.low - margin:g} to "
                f"{self.high + margin:g}; training had {trained}. {received}"
            )
        if not self.low <= number <= self.high:
            logger.warning(f"{self.name}={text} is outside of the trained range, {trained}.")


def as_variables(stored: Iterable[Any], names: Sequence[str]) -> tuple[Variable, ...]:
    """Read the variables of a model's configuration, one for each name.

    Raises:
        InputError: if they are not the named ones.
    """
    variables = tuple(item if isinstance(item, Variable) else Variable(**item) for item in stored)
    if [variable.name for variable in variables] != list(names):
        raise InputError(
            f"`condition_variables` must be those of conditions={tuple(names)}. "
            f"Received: {variables}."
        )
    return variables


def find_variables(
    names: Sequence[str], table: SubjectTable, train_subjects: Sequence[str] | np.ndarray
) -> tuple[Variable, ...]:
    """Find the kind, categories and range of conditions in the training subjects.

    Args:
        names: columns of the table.
        table: the archive's table of subjects.
        train_subjects: subjects of the training slices; the others are not looked at.

    Raises:
        InputError: if a column does not exist, is blank, or has a single value.
    """
    if not names:
        return ()
    columns = list(next(iter(table.values()), ()))
    if not columns:
        raise InputError(
            "`conditions` needs an archive with a table of subjects. Prepare it with "
            f"prepare_data.py --subject-table. Received: conditions={' '.join(names)}."
        )
    rows = [table[name] for name in sorted(set(train_subjects)) if name in table]
    return tuple(_find_variable(name, columns, rows) for name in names)


def _find_variable(name: str, columns: list[str], rows: list[Mapping[str, str]]) -> Variable:
    if name not in columns:
        raise InputError(
            f"`conditions` must be columns of the table of subjects: {', '.join(columns)}. "
            f"Received: {name}."
        )
    values = sorted({row[name] for row in rows if row[name]})
    numbers = sorted({float(value) for value in values}) if is_numeric(values) else []
    if len(numbers or values) < 2:
        raise InputError(
            "`conditions` must have at least two values in the training subjects. Received: "
            f"{name} with {values[0] if values else 'blanks'} alone."
        )
    if numbers:
        return Variable(name, numbers[0], numbers[-1])
    return Variable(name, categories=tuple(values))


def encode_subjects(
    variables: Sequence[Variable], table: SubjectTable, subjects: Sequence[str] | np.ndarray
) -> np.ndarray:
    """Encode the conditions of slices by their subjects.

    Args:
        variables: the conditions.
        table: subject -> column -> value; subjects without a row are unknown.
        subjects: the subject of each slice.

    Returns:
        float32 array of shape (slices, variables).
    """
    rows = {
        name: [
            variable.encode(table.get(name, {}).get(variable.name, "")) for variable in variables
        ]
        for name in set(subjects)
    }
    return np.array([rows[name] for name in subjects], "float32")


def add_subjects(
    variables: Sequence[Variable],
    positions: np.ndarray,
    table: SubjectTable,
    subjects: Sequence[str] | np.ndarray,
) -> np.ndarray:
    """Add the conditions of slices to their positions.

    Args:
        variables: the conditions.
        positions: float array of shape (slices,), in [0, 1].
        table: as for `encode_subjects`.
        subjects: the subject of each slice.

    Returns:
        float32 array of shape (slices, 1 + conditions); of shape (slices,) without conditions.
    """
    positions = np.asarray(positions, "float32")
    if not variables:
        return positions
    return np.column_stack([positions, encode_subjects(variables, table, subjects)])


def parse_request(texts: Sequence[str]) -> dict[str, str]:
    """Parse conditions such as "age=80".

    Raises:
        InputError: if one has no name or value, or a name occurs twice.
    """
    pairs = [text.partition("=") for text in texts]
    conditions = {name: value for name, _, value in pairs}
    if len(conditions) < len(pairs) or not all(name and value for name, _, value in pairs):
        raise InputError(
            "`condition` must be name=value, each name once, such as age=80 sex=F. "
            f"Received: {' '.join(texts)}."
        )
    return conditions


def expand_request(
    variables: Sequence[Variable], texts: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Parse conditions, one of which may have several values, such as "age=45,60".

    Returns:
        Label of each value, such as "age 45" -> the conditions with this value. A single entry
        with the label "" if no condition has several.

    Raises:
        InputError: as `parse_request`, and if several conditions have several values.
    """
    conditions = parse_request(texts)
    # The name of a category may hold a comma.
    categories = {value for variable in variables for value in variable.categories}
    several = [
        name for name, value in conditions.items() if "," in value and value not in categories
    ]
    if len(several) > 1:
        raise InputError(
            "`condition` can have several values for one name, not for "
            f"{' and '.join(several)}. Received: {' '.join(texts)}."
        )
    if not several:
        return {"": conditions}
    (name,) = several
    values = [value.strip() for value in conditions[name].split(",")]
    return {f"{name} {value}": {**conditions, name: value} for value in values}


def encode_request(variables: Sequence[Variable], conditions: Mapping[str, object]) -> np.ndarray:
    """Encode the requested conditions; the others are unknown.

    Args:
        variables: the conditions of the prior.
        conditions: name -> value, of any subset.

    Returns:
        float32 array of shape (variables,).

    Raises:
        InputError: if the prior has no such condition, or a value is invalid.
    """
    names = [variable.name for variable in variables]
    for name in conditions:
        if name not in names:
            known = f"has {', '.join(names)}" if names else "was trained without conditions"
            raise InputError(f"`condition` is not known: the prior {known}. Received: {name}.")
    encoded = []
    for variable in variables:
        text = str(conditions.get(variable.name, ""))
        if variable.name in conditions:
            variable.check(text)
        encoded.append(variable.encode(text))
    return np.array(encoded, "float32")
