import pytest
from helpers import tiny_prior_config, tiny_prior_training

from brainslices.config import Preset
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.selection import Selection


def test_round_trip_turns_nan_and_infinity_into_null(tmp_path):
    path = tmp_path / "value.json"
    value = {"a": 1, "b": [1.5, float("nan"), (2, float("-inf"))], "c": {"d": float("inf")}}
    write_json(path, value)
    assert read_json(path) == {"a": 1, "b": [1.5, None, [2, None]], "c": {"d": None}}
    assert "NaN" not in path.read_text()


def test_value_that_json_cannot_hold_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[1]", None], ids=str)
def test_missing_or_invalid_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert content != b"[1]" or "Received: [1]" in str(caught.value)


def test_unknown_preset_is_refused_with_the_known_ones():
    presets = {"default": Preset(tiny_prior_config(), tiny_prior_training())}
    assert Selection().load(presets) == (tiny_prior_config(), tiny_prior_training())
    with pytest.raises(InputError, match=r"`preset` .*default\. Received: preset='large'"):
        Selection("large").load(presets)
