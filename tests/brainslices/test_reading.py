import errno

import pytest

from brainslices.errors import CorruptFileError, InputError
from brainslices.reading import reading


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
    for error in (KeyboardInterrupt(), InputError("a.bin: clear")):
        with pytest.raises(type(error)) as caught, reading("a.bin", "image", ""):
            raise error
        assert caught.value is error


def test_a_file_that_the_system_cannot_read_is_not_called_corrupt(tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied")
    match = "Permission denied.*Make it readable"
    with pytest.raises(InputError, match=match) as caught, reading(tmp_path, "image", ""):
        raise denied
    assert not isinstance(caught.value, CorruptFileError)
    with pytest.raises(CorruptFileError), reading(tmp_path, "image", "Restore it."):
        raise OSError(errno.EINVAL, "Invalid argument")  # a seek to before the file


def test_an_error_without_the_files_name_gets_it(tmp_path):
    path, match = tmp_path / "a.bin", r"a\.bin: `std` must be positive\. Restore it\."
    with pytest.raises(InputError, match=match), reading(path, "model", "Restore it."):
        raise InputError("`std` must be positive.")
