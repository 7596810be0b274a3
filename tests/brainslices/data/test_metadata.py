from collections import Counter
from pathlib import Path

import pytest
from helpers import save_image

from brainslices.data.discovery import SourceFiles, find_files
from brainslices.data.metadata import assign_splits, read_metadata, slice_records
from brainslices.data.splits import SPLITS
from brainslices.errors import InputError

ROOT = Path("/data")


def source_files(*names, kind="image"):
    return SourceFiles(ROOT, kind, [ROOT / name for name in names], Counter())


def test_release_has_subjects_splits_and_numbers_in_its_paths():
    name = "keras_png_slices_{}/case_{:03d}_slice_{}.nii.png"
    names = [
        name.format(split, subject, number)
        for split, subject in (("train", 1), ("validate", 3), ("test", 4))
        for number in (0, 31)
    ]
    metadata = read_metadata(source_files(*names))
    records = slice_records(metadata)
    assert [(record.subject, record.split, record.position) for record in records] == [
        ("case_001", "train", 0),
        ("case_001", "train", 1),
        ("case_003", "validate", 0),
        ("case_003", "validate", 1),
        ("case_004", "test", 0),
        ("case_004", "test", 1),
    ]
    assert records[0].slice_id == "case_001_slice_0"
    assert records[0].source == names[0]
    assert assign_splits(metadata, (0, 0, 1), seed=0) != metadata  # sorted by split
    assert sorted(assign_splits(metadata, (0, 0, 1), 0), key=lambda item: item.source) == metadata


def test_splits_are_assigned_by_subject_where_there_are_none():
    names = [f"{k}/case_{subject:03d}_slice_{k}.png" for subject in range(10) for k in range(3)]
    metadata = read_metadata(source_files(*names))
    assert {item.split for item in metadata} == {None}
    assert {record.split for record in slice_records(metadata)} == {""}
    records = slice_records(assign_splits(metadata, (0.6, 0.2, 0.2), seed=5))
    counts = Counter(record.split for record in records)
    assert [counts[split] for split in SPLITS] == [18, 6, 6]
    assert len({(record.subject, record.split) for record in records}) == 10


def test_position_is_the_slice_number_over_the_largest_of_all():
    names = ("case_001_slice_9", "case_001_slice_10", "case_002_slice_0", "case_002_slice_40")
    records = slice_records(read_metadata(source_files(*(f"{name}.png" for name in names))))
    assert [record.position for record in records] == [9 / 40, 10 / 40, 0, 1]


def test_pattern_finds_subjects_and_slices_in_the_path():
    files = source_files(*(f"p{subject}/axial-{n}.png" for subject in (7, 8) for n in (0, 4)))
    records = slice_records(read_metadata(files, r"(?P<subject>p\d)/axial-(?P<slice>\d)"))
    assert [(record.subject, record.position) for record in records] == [
        ("p7", 0),
        ("p7", 1),
        ("p8", 0),
        ("p8", 1),
    ]
    records = slice_records(read_metadata(files, r"(?P<subject>p\d)"))  # positions by rank
    assert [record.position for record in records] == [0, 1, 0, 1]


def test_volumes_without_a_known_name_are_subjects_of_their_own(caplog):
    names = ("a/OAS1_0002_MR1.nii", "sub-07_T1w.nii.gz", "b/someone.nii.gz")
    metadata = read_metadata(source_files(*names, kind="volume"))
    subjects = [item.subject for item in metadata]
    assert subjects == ["OAS1_0002", "b/someone", "sub-07"]
    assert [item.slice_id for item in metadata] == ["a/OAS1_0002_MR1", "b/someone", "sub-07_T1w"]
    assert "someone.nii.gz" in caplog.text
    assert "sub-07" not in caplog.text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (None, r"scan\.png.*case_NNN_slice_K"),
        ("(?P<subject>x+)", r"scan\.png.*\(\?P<subject>x"),
        ("scan", "`pattern`.*pattern='scan'"),
        ("(?P<subject", "`pattern`.*subject"),
        ("(?P<subject>sc)(?P<slice>an)", r"`pattern`.*'an' in .*scan\.png"),
    ],
)
def test_paths_without_a_subject_are_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        read_metadata(source_files("scan.png"), pattern)


def test_subject_in_two_splits_is_refused():
    files = source_files("train/case_002_slice_0.png", "test/case_002_slice_1.png")
    with pytest.raises(InputError, match="'case_002' is in two splits"):
        read_metadata(files)


def test_files_beside_split_folders_are_refused():
    files = source_files("train/case_001_slice_0.png", "case_009_slice_0.png")
    with pytest.raises(InputError, match=r"none \(case_009_slice_0.png\)"):
        read_metadata(files)


# Tables


@pytest.fixture
def images(tmp_path):
    for name in ("x", "y", "z", "unlisted"):
        save_image(tmp_path / "png" / f"{name}.png")
    return find_files(tmp_path / "png")


def with_table(images, text):
    table = images.root.parent / "table.csv"
    table.write_text(text, encoding="utf-8")
    return read_metadata(images, table=table)


def test_table_lists_files_subjects_splits_and_positions(images):
    text = (
        "file,subject,split,position\nx.png,anna,train,0.3\ny.png,anna,train,0.1\nz.png,bo,val,\n"
    )
    records = slice_records(with_table(images, text))
    assert [(r.slice_id, r.subject, r.split, r.position) for r in records] == [
        ("y", "anna", "train", 0.1),
        ("x", "anna", "train", 0.3),
        ("z", "bo", "validate", 0.5),
    ]


def test_table_may_start_with_a_byte_order_mark_and_leave_splits_out(images):
    metadata = with_table(images, "\ufefffile,subject\nx.png,a\ny.png,b\nz.png,c\n")
    assert [(item.source, item.split) for item in metadata] == [
        (f"{name}.png", None) for name in "xyz"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file and subject.*Received: none"),
        ("name,subject\nx.png,a\n", "Received: name, subject"),
        ("file,subject\nx.png,a\nabsent.png,a\n", r"table\.csv, line 3.*file='absent.png'"),
        ("file,subject\nx.png,\n", "line 2.*subject=''"),
        ("file,subject,split\nx.png,a,dev\n", "line 2.*split='dev'"),
        ("file,subject,position\nx.png,a,high\n", "line 2.*position='high'"),
        ("file,subject,position\nx.png,a,1.5\n", "position='1.5'"),
        ("file,subject,position\nx.png,a,nan\n", "position='nan'"),
        ("file,subject,split\nx.png,a,train\ny.png,b,\n", r"x\.png is in 'train'.*none \(y\.png\)"),
        ("file,subject,split\nx.png,a,train\ny.png,a,test\n", "'a' is in two splits"),
    ],
)
def test_faults_of_a_table_are_refused_by_line(images, text, message):
    with pytest.raises(InputError, match=message):
        with_table(images, text)


def test_missing_table_is_refused(images):
    with pytest.raises(InputError, match=r"absent\.csv"):
        read_metadata(images, table=Path("absent.csv"))
