from pathlib import Path

import pytest

from brainslices.data.source_table import TableRow, read_table
from brainslices.errors import InputError


def read(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_table(path)


@pytest.mark.parametrize(
    "text",
    [
        "file,subject,split,position\na.png,anna,val,0.5\n",
        "\ufeffFile;Subject;Split;Position\na.png;anna;Validation;0.5\n",
        "age\tFILENAME\tParticipant_ID\tpartition\tPosition \n9\ta.png\tanna\tdev\t0.5\n",
        "Image,Subject ID,set,slice-position\na.png, anna ,VALID,0.5\n",
    ],
)
def test_columns_are_known_by_their_usual_names_in_any_case(tmp_path, text):
    table = read(tmp_path, text)
    assert table.rows == [TableRow(2, "a.png", "anna", "validate", 0.5)]
    assert table.lists_files


def test_table_of_participants_lists_subjects(tmp_path):
    table = read(tmp_path, "participant_id\tsplit\nsub-01\tn/a\n", "participants.tsv")
    assert table.rows == [TableRow(2, "", "sub-01", None, None)]
    assert not table.lists_files
    # One position for all slices of a subject, or another meaning of the word.
    table = read(tmp_path, "subject,position\ns1,supine\n")
    assert table.rows == [TableRow(2, "", "s1", None, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file and subject.*Received: none"),
        ("name,age\nx.png,a\n", "Received: name, age"),
        ("file,subject\nx.png,a\nx.png,\n", r"table\.csv, line 3.*subject=''"),
        ("file,subject,split\nx.png,a,holdout\n", "line 2.*split='holdout'"),
        ("file,subject,position\nx.png,a,high\n", "line 2.*position='high'"),
        ("file,subject,position\nx.png,a,1.5\n", "position='1.5'"),
        ("file,subject,position\nx.png,a,nan\n", "position='nan'"),
        ("file,File,subject\nx.png,y.png,a\n", "each once.*Received: file, File"),
        ('file,subject\nx.png,"a\ny.png,b\n', r"table\.csv cannot be read.*line 3"),
    ],
)
def test_faults_of_a_table_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_table_that_is_no_file_is_refused(tmp_path):
    for path in (Path("absent.csv"), tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_table(path)
