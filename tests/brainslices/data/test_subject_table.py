import numpy as np
import pytest

from brainslices.data.phantom import phantom_attributes, phantom_slices
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.data.subject_table import (
    describe,
    is_numeric,
    read_subject_table,
    select_subjects,
)
from brainslices.errors import InputError


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def phantoms(tmp_path):
    """Prepare four small phantoms; return the archive and the reported lines."""

    def prepare(**options):
        lines = []
        config = SourceConfig(
            source="phantom", out=tmp_path / "out", subjects=4, slices=2, size=(32, 32), **options
        )
        return make_archive(config, lines.append), lines

    return prepare


def test_participants_of_bids_are_read_as_they_are(tmp_path):
    path = write(
        tmp_path / "participants.tsv",
        "participant_id\tage\tsex\nsub-01\t74\tn/a\nsub-02\tNaN\tNA\n",
    )
    table = read_subject_table(path)
    assert table == {"sub-01": {"age": "74", "sex": ""}, "sub-02": {"age": "", "sex": ""}}
    assert select_subjects(table, ["01", "03"]) == ({"01": {"age": "74", "sex": ""}}, ["03"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,sex\n74,F\n", "must have one column subject"),
        ("subject\na\n", "at least one other"),
        ("Subject,subject\na,b\n", "one column subject"),
        ("subject,age\na,1\na,2\n", "line 3: each row must name another subject"),
        ("subject,age\na,1\nsub-a,2\n", "line 3: each row must name another subject"),
        ("subject,age, age\na,1,2\n", "name of its own.*Received: subject, age,  age"),
        ("subject,age\n,1\n", "line 2: each row must name another subject"),
    ],
)
def test_tables_without_clear_subjects_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_subject_table(write(tmp_path / "table.csv", text))


def test_kinds_follow_the_content():
    assert is_numeric(["1", "", "-2e3"])
    assert not is_numeric(["1", "nan"])
    table = {"a": {"age": "74", "sex": "F", "x": ""}, "b": {"age": "5", "sex": "M", "x": ""}}
    assert describe(table) == "age (number, 5 to 74), sex (2 categories: F, M), x (blank)"


def test_phantoms_bring_a_table_that_a_given_one_replaces(tmp_path, phantoms):
    own, lines = phantoms()
    assert own.subjects["phantom_0002"] == phantom_attributes(2)
    assert "age (number" in lines[-1]
    table = write(tmp_path / "table.csv", "subject,site\nphantom_0001,A\nother,B\n")
    given, lines = phantoms(subject_table=table, overwrite=True)
    assert given.subjects == {"phantom_0001": {"site": "A"}}
    assert "3 without a row" in lines[-1]
    assert given.content_hash == own.content_hash


def test_archive_without_table_opens(phantoms):
    archive, _ = phantoms()
    (archive.path / "subjects.csv").unlink()
    assert archive.subjects == {}


def test_table_of_other_subjects_is_refused(tmp_path, phantoms):
    with pytest.raises(InputError, match="must name the subjects of the source"):
        phantoms(subject_table=write(tmp_path / "table.csv", "subject,age\ncase_001,74\n"))
    assert not (tmp_path / "out").exists()


def test_age_of_phantoms_darkens_their_heads():
    ages, dark = [], []
    for subject in range(24):
        image = phantom_slices(subject, [0.8], (64, 64))
        inside = image[image > 0]
        ages.append(float(phantom_attributes(subject)["age"]))
        dark.append(np.mean(inside < 0.45 * np.median(inside)))
    assert np.corrcoef(ages, dark)[0, 1] > 0.7
