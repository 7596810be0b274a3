import pytest

from brainslices.csv_files import read_rows, write_rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


def test_rows_are_cells_by_column_with_their_line(path):
    path.write_text('\ufefffile,subject\n"a, b.png",anna\n\nc.png,\n', encoding="utf-8")
    assert read_rows(path) == {
        2: {"file": "a, b.png", "subject": "anna"},
        4: {"file": "c.png", "subject": ""},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'file,subject\na.png,"anna\nb.png,bo\n', "line 3"),  # a quote that is not closed
        (b'file,subject\na.png,"an"na\n', "line 2"),
        (b"file,subject\na.png\n", "line 2 must have 2 cells"),
        (b"file,subject\na.png,anna,train\n", "line 2 must have 2 cells"),
        (b"file,subject,file\na.png,anna,b.png\n", "file"),
        (b"file,subject\n\xff.png,anna\n", "utf-8"),
    ],
)
def test_malformed_files_are_refused(path, text, message):
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_names_that_are_not_utf8_are_escaped(path):
    write_rows(path, [{"file": "a\udcff.png", "ssim": 0.5}])
    assert [*read_rows(path).values()] == [{"file": "a\\udcff.png", "ssim": "0.5"}]
