import math

import pytest

from brainslices import schema


@pytest.mark.parametrize(
    ("rule", "valid", "invalid"),
    [
        (schema.INTEGER, [0, -3], [True, 1.0, "1", None]),
        (schema.POSITIVE, [1, 2**40], [0, -1, True, 1.0]),
        (schema.NATURAL, [0, 3], [-1, 2**63, None]),
        (schema.NUMBER, [0, -0.5], [math.nan, math.inf, 10**400, True, "1"]),
        (schema.POSITIONS, [[0, 0.5, 1]], [[], [-5], [7], [math.nan], 0.5, None]),
        (schema.STRING, ["", "a"], [None, 1, ["a"]]),
        (schema.SHA256, ["0a" * 32], ["0A" * 32, "0a" * 31, "0g" * 32, 0]),
        (schema.SHAPE, [[1, 2]], [[1], [1, 2, 3], [1, 0], [1.0, 2], [1, 10**6], "12", 7]),
        (schema.COUNTS, [{}], [[], None]),
    ],
)
def test_rules_check_type_and_range(rule, valid, invalid):
    for value in valid:
        assert schema.check_fields({"name": value, "other": 1}, {"name": rule}) == {"name": value}
        assert schema.check_fields({}, {"name": rule}, optional={"name"}) == {}
    for value in invalid:
        with pytest.raises(ValueError, match="`name`.*Received: name="):
            schema.check_fields({"name": value}, {"name": rule})


@pytest.mark.parametrize("stored", [{}, [], None, "name"])
def test_missing_fields_and_other_types_are_refused(stored):
    with pytest.raises(ValueError, match="name|object"):
        schema.check_fields(stored, {"name": schema.STRING})
