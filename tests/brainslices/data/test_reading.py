import pytest

from brainslices.data.reading import reading
from brainslices.errors import InputError


@pytest.mark.parametrize("error", [ValueError("bad magic"), MemoryError(), IndexError("bad magic")])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    reason = str(error) or "MemoryError"
    message = rf"a\.bin is not a readable image \({reason}\)\. Remove it\."
    with pytest.raises(InputError, match=message), reading(path, "image", "Remove it."):
        raise error


def test_empty_file_is_named_as_empty(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(InputError, match="empty"), reading(tmp_path / "a.bin", "image", ""):
        raise ValueError("bad magic")


def test_interrupts_and_clear_errors_pass():
    for error in (KeyboardInterrupt(), InputError("clear")):
        with pytest.raises(type(error)) as caught, reading("a.bin", "image", ""):
            raise error
        assert caught.value is error
