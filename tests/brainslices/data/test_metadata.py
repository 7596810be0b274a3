from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import save_image

from brainslices.data.discovery import SourceFiles, find_files
from brainslices.data.metadata import assign_splits, read_metadata, slice_records
from brainslices.data.source_table import read_table
from brainslices.data.splits import SPLITS
from brainslices.errors import InputError

ROOT = Path("/data")


def source_files(*names, kind="image"):
    return SourceFiles(ROOT, kind, [ROOT / name for name in names], {})


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
        (None, r"1 files.*case_NNN_slice_K.*scan\.png"),
        ("(?P<subject>x+)", r"1 files.*\(\?P<subject>x.*scan\.png"),
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
    names = ("train/case_001_slice_0.png", "test/case_002_slice_0.png", "case_009_slice_0.png")
    files = source_files(*names)
    with pytest.raises(InputError, match=r"2 files .* 1 have none \(case_009_slice_0.png\)"):
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
    table = read_table(table)
    listed = [images.root / row.file for row in table.rows if row.file]
    return read_metadata(replace(images, paths=listed or images.paths), table=table)


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


def test_table_without_subjects_takes_them_from_the_names(tmp_path):
    save_image(tmp_path / "png" / "case_007_slice_3.png")
    files = find_files(tmp_path / "png")
    (item,) = with_table(files, "Filename,Split\ncase_007_slice_3.png,dev\n")
    assert (item.subject, item.split, item.slice_number) == ("case_007", "validate", 3)


def test_table_of_participants_selects_subjects_and_assigns_splits(tmp_path, caplog):
    for name in ("sub-01/sub-01_T1w", "sub-02/sub-02_T1w", "sub-03/sub-03_T1w"):
        save_image(tmp_path / "png" / f"{name}.png")
    files = find_files(tmp_path / "png")
    text = "Participant_ID\tage\tsplit\nsub-01\t30\ttrain\n02\tn/a\ttest\nsub-09\t1\ttest\n"
    metadata = with_table(files, text)
    assert [(item.subject, item.split) for item in metadata] == [
        ("sub-01", "train"),
        ("sub-02", "test"),
    ]
    assert "1 files belong to no subject of the table, e.g. sub-03" in caplog.text
    assert "1 subjects of the table have no files, e.g. sub-09" in caplog.text
    with pytest.raises(InputError, match="no subject of the files.*'x'.*'sub-01'"):
        with_table(files, "participant_id\nx\n")
    with pytest.raises(InputError, match="line 3.*one split.*'01'.*'test'.*'train' in line 2"):
        with_table(files, "participant_id,split\nsub-01,train\n01,test\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,subject,split\nx.png,a,train\ny.png,b,\n", r"x\.png is in 'train'.*none \(y\.png\)"),
        ("file,subject,split\nx.png,a,train\ny.png,a,test\n", "'a' is in two splits"),
    ],
)
def test_tables_whose_splits_do_not_fit_are_refused(images, text, message):
    with pytest.raises(InputError, match=message):
        with_table(images, text)


# Split folders, ids and known names


def test_bids_sessions_named_test_are_no_splits_and_one_subject_is_in_one_split():
    names = [
        f"sub-0{k}/ses-{session}/anat/sub-0{k}_ses-{session}_T1w.nii.gz"
        for k in (1, 2, 3)
        for session in ("test", "retest", "train")
    ]
    metadata = read_metadata(source_files(*names, kind="volume"))
    assert {item.split for item in metadata} == {None}
    assert metadata[0].slice_id == names[1].removesuffix(".nii.gz")
    split_of = {(r.subject, r.split) for r in assign_splits(metadata, (0.4, 0.3, 0.3), 0)}
    assert len(split_of) == 3


def test_split_folders_can_be_ignored():
    files = source_files("train/case_001_slice_0.png", "test/case_001_slice_1.png")
    metadata = read_metadata(files, split_folders={})
    assert [(item.split, item.slice_id) for item in metadata] == [
        (None, "test/case_001_slice_1"),
        (None, "train/case_001_slice_0"),
    ]


def test_ids_keep_the_split_folder_only_where_they_would_collide():
    names = ("train/1.png", "test/1.png", "test/2.png", "test/2.jpg", "test/3.png")
    metadata = read_metadata(source_files(*names), require_subject=False)
    assert {item.source: item.slice_id for item in metadata} == {
        "train/1.png": "train/1",
        "test/1.png": "test/1",
        "test/2.png": "test/2.png",
        "test/2.jpg": "test/2.jpg",
        "test/3.png": "3",
    }


def test_validation_is_drawn_from_the_subjects_of_train():
    names = [f"Training/case_{k:03d}_slice_{n}.png" for k in range(10) for n in (0, 1)]
    names += [f"Testing/case_{k:03d}_slice_0.png" for k in range(10, 14)]
    metadata = assign_splits(read_metadata(source_files(*names)), (0.6, 0.2, 0.2), seed=1)
    subjects = {split: set() for split in SPLITS}
    for item in metadata:
        subjects[item.split].add(item.subject)
    assert {split: len(names) for split, names in subjects.items()} == {
        "train": 8,  # validate is 0.2 / (0.6 + 0.2) of the ten
        "validate": 2,
        "test": 4,
    }
    assert subjects["test"] == {f"case_{k:03d}" for k in range(10, 14)}


@pytest.mark.parametrize(
    ("name", "subject", "number"),
    [
        ("Mild Dementia/OAS1_0028_MR1_mpr-1_100.jpg", "OAS1_0028", 100),
        ("OAS1_0001_MR1_mpr-3.png", "OAS1_0001", None),
        (
            "002_S_0295/2008/ADNI_002_S_0295_MR_MPR_Br_20081001_S13408_I118671_57.png",
            "002_S_0295",
            57,
        ),
        ("002_S_0295/ADNI_002_S_0295_MR_S13408_I118671.png", "002_S_0295", None),
        ("sub-07/ses-2/sub-07_ses-2_slice-12.png", "sub-07", 12),
        ("sub-07/013.png", "sub-07", 13),
        ("case_012_slice_3.nii.png", "case_012", 3),
    ],
)
def test_known_names_of_images(name, subject, number):
    (item,) = read_metadata(source_files(name))
    assert (item.subject, item.slice_number) == (subject, number)


def test_visits_of_one_head_have_one_subject():
    names = (
        "ADNI/002_S_0295/MPRAGE/2006-04-18/S13408/ADNI_002_S_0295_MR_MPRAGE_br_raw_I13722.nii",
        "ADNI/002_S_0295/MPRAGE/2007-11-02/S40966/ADNI_002_S_0295_MR_MPRAGE_br_raw_I79749.nii",
        "OAS2_0001_MR1/mpr-1.nii.hdr",
        "OAS2_0001_MR2/mpr-1.nii.hdr",
        "IXI002-Guys-0828-T1.nii.gz",
        "IXI002-Guys-0828-T2.nii.gz",
    )
    subjects = [item.subject for item in read_metadata(source_files(*names, kind="volume"))]
    assert Counter(subjects) == {"002_S_0295": 2, "OAS2_0001": 2, "IXI002": 2}


def test_files_without_a_known_name_make_one_warning(caplog):
    names = [f"{k}.nii" for k in range(50)]
    assert len(read_metadata(source_files(*names, kind="volume"))) == 50
    assert len(caplog.records) == 1
    assert "50 files" in caplog.text


def test_positions_span_the_numbers_that_are_there():
    names = [f"OAS1_000{k}_MR1_mpr-1_{n}.jpg" for k in (1, 2) for n in (100, 120, 160)]
    records = slice_records(read_metadata(source_files(*names)))
    assert [record.position for record in records] == [0, 20 / 60, 1] * 2


def test_positions_of_the_public_release_are_number_over_31_to_the_bit():
    names = [f"case_001_slice_{n}.nii.png" for n in range(32)]
    records = slice_records(read_metadata(source_files(*names)))
    assert [record.position for record in records] == [n / 31 for n in range(32)]


def test_images_without_numbers_are_ranked_in_natural_order():
    metadata = read_metadata(
        source_files(*(f"a/{number}.png" for number in range(1, 13))), "(?P<subject>a)"
    )
    sources = [record.source for record in slice_records(metadata)]
    assert sources == [f"a/{number}.png" for number in range(1, 13)]


def test_table_without_splits_keeps_those_of_the_folders(tmp_path):
    names = ("train/x.png", "test/y.png")
    for name in names:
        save_image(tmp_path / "png" / name)
    files = find_files(tmp_path / "png")
    metadata = with_table(files, "file,subject\ntrain/x.png,a\ntest/y.png,b\n")
    assert {item.source: item.split for item in metadata} == {
        "train/x.png": "train",
        "test/y.png": "test",
    }
