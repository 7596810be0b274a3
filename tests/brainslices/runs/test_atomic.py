import errno
import os
import stat

import pytest

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_folder, atomic_path, check_output_dir


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "value.txt"
    with atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
        temporary.write_text("first")
        assert not path.exists()
    with atomic_path(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names(path.parent) == ["value.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_file_is_unchanged_when_the_block_fails(tmp_path, error):
    path = tmp_path / "value.txt"
    path.write_text("first")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "first"
    assert names(tmp_path) == ["value.txt"]


def test_folder_is_replaced_when_the_block_succeeds(tmp_path):
    folder = tmp_path / "new" / "result"
    for content in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / content).write_text(content)
    assert names(folder) == ["second"]
    assert names(folder.parent) == ["result"]


def test_failed_folder_leaves_nothing_and_its_error_names_the_folder(tmp_path):
    folder = tmp_path / "new" / "result"
    with pytest.raises(OSError) as caught, atomic_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary / "half"))
    assert caught.value.filename == str(folder)
    assert names(tmp_path) == []


def test_output_folder_that_is_new_empty_or_an_earlier_result(tmp_path):
    folder = tmp_path / "out"
    assert not check_output_dir(folder, ["a.png"], "reconstruction")
    folder.mkdir()
    (folder / ".DS_Store").touch()
    assert not check_output_dir(folder, ["a.png"], "reconstruction")
    for name in ("metrics.json", "a.png"):
        (folder / name).touch()
    assert check_output_dir(folder, ["metrics.json", "a.png"], "reconstruction")
    assert check_output_dir(folder, None, "reconstruction")


def test_hidden_files_are_never_replaced(tmp_path):
    folder = tmp_path / "out"
    (folder / ".git").mkdir(parents=True)
    with pytest.raises(InputError, match=r"\.git"):
        check_output_dir(folder, ["a.png"], "reconstruction")
    assert not check_output_dir(folder, None, "search")  # nothing is replaced there


def test_output_folder_with_other_files_is_refused(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.png"):  # without the marker it is not a result
        check_output_dir(folder, None, "reconstruction")
    for name in ("metrics.json", "thesis.txt"):
        (folder / name).touch()
    with pytest.raises(InputError, match=r"thesis\.txt\..* --out"):
        check_output_dir(folder, ["metrics.json", "a.png"], "reconstruction")
    with pytest.raises(InputError, match="is a file; --out"):
        check_output_dir(folder / "a.png", None, "reconstruction")


def test_leftover_of_a_killed_process_with_the_same_number_does_no_harm(tmp_path):
    leftover = tmp_path / f".result.{os.getpid()}.partial"
    leftover.mkdir()
    with atomic_folder(tmp_path / "result") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "result") == ["new"]
    assert leftover.is_dir()  # possibly of a process in another container
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o755


def test_output_folder_that_cannot_be_replaced_is_refused_before_any_work(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: path == folder)
        with pytest.raises(InputError, match="out is a mount point.*a folder in it as --out"):
            check_output_dir(folder, [], "result")
        assert not check_output_dir(folder, None, "result")  # written into, not replaced
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(InputError, match=f"it is built in {tmp_path}, whose permissions"):
            check_output_dir(folder, [], "result")
