import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import GREY, save_image

from brainslices.data.archive import SPLITS
from brainslices.data.discovery import find_files, image_records, split_subjects
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.errors import InputError


def release(root, splits=(("train", (1, 2)), ("validate", (3,)), ("test", (4,)))):
    """The public release in small: split folders, two slices a subject, masks beside."""
    for split, subjects in splits:
        for subject in subjects:
            for number in range(2):
                name = f"_{subject:03d}_slice_{number}.nii.png"
                save_image(root / f"keras_png_slices_{split}" / f"case{name}", GREY + subject)
                save_image(root / f"keras_png_slices_seg_{split}" / f"seg{name}")
    return root


def volume(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros((16, 18, 14), np.float32)
    voxels[3:13, 3:15, 2:12] = np.random.default_rng(seed).uniform(50, 100, (10, 12, 10))
    nib.save(nib.Nifti1Image(voxels, np.diag([8, 8, 8, 1])), path)
    return path


def make(tmp_path, source, **options):
    return make_archive(SourceConfig(source=str(source), out=tmp_path / "archive", **options))


def refused(tmp_path, message, source, **options):
    """The archive is refused with the message, and nothing is written."""
    with pytest.raises(InputError, match=message):
        make(tmp_path, source, **options)
    assert not (tmp_path / "archive").exists()
    assert not list(tmp_path.glob(".archive*"))


def splits_of(archive):
    return {record.subject: record.split for record in archive.index}


def test_fewer_subjects_keep_the_splits_shares(tmp_path):
    source = release(
        tmp_path / "png", (("train", range(12)), ("validate", range(12, 15)), ("test", (15,)))
    )
    archive = make(tmp_path, source, subjects=8)
    assert Counter(splits_of(archive).values()) == {"train": 6, "validate": 2, "test": 1}
    assert len(archive.index) == 9 * 2
    again = make_archive(SourceConfig(source=str(source), out=tmp_path / "again", subjects=8))
    assert splits_of(again) == splits_of(archive)
    whole = make_archive(SourceConfig(source=str(source), out=tmp_path / "all", subjects=99))
    assert len(splits_of(whole)) == 16


# Finding and naming


def test_find_files_takes_visible_files_of_any_depth_without_masks(tmp_path):
    for name in ("b/case_1.png", "a/deep/case_2.PNG", ".hidden/case_3.png", "b/._case_1.png"):
        save_image(tmp_path / name)
    for name in ("b/seg_001_slice_0.nii.png", "FSL_SEG/case_1.png", "x_fseg.tif"):
        save_image(tmp_path / name)
    (tmp_path / "readme.txt").write_text("words")
    files, are_volumes = find_files(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "a/deep/case_2.PNG",
        "b/case_1.png",
    ]
    assert not are_volumes
    assert find_files(files[0]) == ([files[0]], False)


def test_find_files_takes_an_analyze_pair_once(tmp_path):
    for name in ("a.hdr", "a.img", "b.nii.gz", "lone.img"):
        (tmp_path / name).write_bytes(b"x")
    files, are_volumes = find_files(tmp_path)
    assert [file.name for file in files] == ["a.hdr", "b.nii.gz", "lone.img"]
    assert are_volumes


def test_sources_without_use_are_refused(tmp_path):
    refused(tmp_path, "There is no .*absent", tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "seg_001_slice_0.png").write_bytes(b"x")
    refused(tmp_path, "folder holds no pictures .* and no volumes", tmp_path / "folder")
    save_image(tmp_path / "both" / "case_001_slice_0.png")
    volume(tmp_path / "both" / "head.nii")
    refused(tmp_path, r"pictures \(.*slice_0\.png\) and volumes \(.*head\.nii\)", tmp_path / "both")


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0), (0, 0, 1)]
)
def test_deal_gives_every_subject_one_split_and_fills_all(count, fractions):
    names = [f"s{number}" for number in range(count)]
    dealt = split_subjects(reversed(names), fractions, seed=3)
    assert sorted(dealt) == sorted(names)
    sizes = Counter(dealt.values())
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(sizes[split] - fraction * count) < 2
        if count >= 3:
            assert (sizes[split] > 0) == (fraction > 0)
    assert dealt == split_subjects(names, fractions, seed=3)
    if count == 39 and fractions[0] == 0.8:
        assert dealt != split_subjects(names, fractions, seed=4)


def test_release_keeps_its_splits_and_leaves_masks_out(tmp_path):
    archive = make(tmp_path, release(tmp_path / "png"))
    assert splits_of(archive) == {
        "case_001": "train",
        "case_002": "train",
        "case_003": "validate",
        "case_004": "test",
    }
    assert [record.position for record in archive.index] == [0, 1] * 4
    assert archive.index[0].slice_id == "case_001_slice_0"
    assert archive.index[0].source == "keras_png_slices_train/case_001_slice_0.nii.png"
    np.testing.assert_array_equal(archive.images[:, 0, 0], [1, 1, 2, 2, 3, 3, 4, 4])


def test_release_without_split_folders_is_split_by_subject_and_seed(tmp_path):
    for subject in range(10):
        for number in range(3):
            save_image(tmp_path / "png" / str(number) / f"case_{subject:03d}_slice_{number}.png")
    archive = make(tmp_path, tmp_path / "png", fractions=(0.6, 0.2, 0.2), seed=5)
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [6, 2, 2]
    assert archive.counts["train"]["slices"] == 18
    again = make(tmp_path, tmp_path / "png", fractions=(0.6, 0.2, 0.2), seed=5, overwrite=True)
    assert again.content_hash == archive.content_hash


def test_slice_position_is_its_number_over_the_largest_of_the_set(tmp_path):
    names = ("case_001_slice_9", "case_001_slice_10", "case_002_slice_0", "case_002_slice_40")
    files = [tmp_path / f"{name}.png" for name in names]
    records = image_records(files, tmp_path, fractions=(1, 0, 0))
    assert [record.position for record in records] == [9 / 40, 10 / 40, 0, 1]


def test_pattern_names_subjects_and_slices_by_the_path(tmp_path):
    files = [tmp_path / f"p{subject}/axial-{n}.png" for subject in (7, 8) for n in (0, 4)]
    pattern = r"(?P<subject>p\d)/axial-(?P<slice>\d)"
    records = image_records(files, tmp_path, pattern=pattern, fractions=(1, 0, 0))
    assert [(record.subject, record.position) for record in records] == [
        ("p7", 0),
        ("p7", 1),
        ("p8", 0),
        ("p8", 1),
    ]
    records = image_records(files, tmp_path, pattern=r"(?P<subject>p\d)", fractions=(0, 0, 1))
    assert [record.position for record in records] == [0, 1, 0, 1]
    assert {record.split for record in records} == {"test"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            None,
            r"scan\.png does not tell its subject by the rule case_NNN_slice_K. Rename it, or give",
        ),
        ("(?P<subject>x+)", r"scan\.png does not tell its subject by the rule \(\?P<subject>x"),
        ("scan", "must name a group subject, .*Received: pattern='scan'"),
        ("(?P<subject", "no regular expression"),
        ("(?P<subject>sc)(?P<slice>an)", r"scan\.png has no slice number where .*'an'"),
    ],
)
def test_names_that_tell_no_subject_are_refused(tmp_path, pattern, message):
    save_image(tmp_path / "png" / "scan.png")
    refused(tmp_path, message, tmp_path / "png", pattern=pattern)


def test_table_says_which_files_whose_and_where(tmp_path):
    for name in ("x", "y", "z", "unlisted"):
        save_image(tmp_path / "png" / f"{name}.png")
    table = tmp_path / "table.csv"
    table.write_text(
        "file,subject,split,position\nx.png,anna,train,0.3\ny.png,anna,train,0.1\nz.png,bo,val,\n"
    )
    archive = make(tmp_path, tmp_path / "png", table=table)
    assert [(r.slice_id, r.subject, r.split, r.position) for r in archive.index] == [
        ("y", "anna", "train", 0.1),
        ("x", "anna", "train", 0.3),
        ("z", "bo", "validate", 0.5),
    ]
    table.write_text("\ufefffile,subject\nx.png,a\ny.png,b\nz.png,c\n", encoding="utf-8")
    archive = make(tmp_path, tmp_path / "png", table=table, overwrite=True)
    assert sorted(splits_of(archive).values()) == sorted(SPLITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns file and subject .*Received: none"),
        ("name,subject\nx.png,a\n", "Received: name, subject"),
        ("file,subject\nx.png,a\nabsent.png,a\n", r"table\.csv, line 3 must .*file='absent.png'"),
        ("file,subject\nx.png,\n", "line 2 must name a subject .*subject=''"),
        ("file,subject,split\nx.png,a,dev\n", "line 2: A split must be .*split='dev'"),
        ("file,subject,position\nx.png,a,high\n", r"line 2: a position must .*Received: 'high'"),
        ("file,subject,position\nx.png,a,1.5\n", r"Received: '1.5'"),
        ("file,subject,split\nx.png,a,train\ny.png,b,\n", r"x\.png is in 'train'.*none \(y\.png\)"),
        ("file,subject,split\nx.png,a,train\ny.png,a,test\n", "'a' is in two splits"),
        ("file,subject\nx.png,a\nx.png,a\n", "'x' comes twice"),
    ],
)
def test_tables_with_faults_are_refused_by_line(tmp_path, text, message):
    for name in ("x.png", "y.png"):
        save_image(tmp_path / "png" / name)
    (tmp_path / "table.csv").write_text(text)
    refused(tmp_path, message, tmp_path / "png", table=tmp_path / "table.csv")


def test_missing_table_is_refused(tmp_path):
    save_image(tmp_path / "png" / "case_001_slice_0.png")
    refused(tmp_path, r"table absent\.csv cannot be read", tmp_path, table=Path("absent.csv"))


# Whole archives


def test_subject_in_two_splits_is_refused(tmp_path):
    root = release(tmp_path / "png", (("train", (1, 2)), ("test", (2,))))
    message = "Subject 'case_002' is in two splits: in 'train' by .*train/case_002.* and in 'test'"
    refused(tmp_path, message, root)


def test_files_beside_split_folders_are_refused(tmp_path):
    root = release(tmp_path / "png")
    save_image(root / "case_009_slice_0.png")
    refused(tmp_path, r"others have none \(case_009_slice_0.png\)", root)


def test_mixed_sizes_are_refused(tmp_path):
    root = release(tmp_path / "png")
    save_image(root / "keras_png_slices_test" / "case_004_slice_2.png", GREY.T)
    refused(tmp_path, r"has 12 x 10 .*case_004_slice_2\.png has 10 x 12", root)


def test_damaged_picture_among_many_is_named_and_nothing_is_written(tmp_path):
    root = release(tmp_path / "png", (("train", range(40)),))
    (root / "keras_png_slices_train" / "case_030_slice_1.nii.png").write_bytes(b"")
    refused(
        tmp_path, r"case_030_slice_1\.nii\.png is no readable picture \(the file is empty", root
    )


def test_taken_folder_is_refused_before_anything_is_read(tmp_path):
    make(tmp_path, release(tmp_path / "png"))
    with pytest.raises(InputError, match="already holds a slice archive"):
        make(tmp_path, tmp_path / "no such source")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (64, 64)}, r"`size` means nothing for pictures.*size=\(64, 64\)"),
        ({"positions": (0.1, 0.2)}, "`positions` means nothing for pictures"),
        ({"fractions": (0.5, 0.2, 0.2)}, r"sum to 1. Received: fractions=\(0.5, 0.2, 0.2\)"),
        ({"fractions": (1.5, -0.5, 0)}, "`fractions` must be shares of at least 0"),
        ({"positions": (0, 1), "positions_mm": (0, 9)}, "Give `positions` or `positions_mm`"),
        ({"positions": (0.9, 0.2)}, r"the lower one first.*positions=\(0.9, 0.2\)"),
        ({"slices": 0}, "`slices` must be at least 1. Received: slices=0"),
        ({"size": (4, 64)}, r"`size` must be at least 16 by 16. Received: size=\(4, 64\)"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(tmp_path, options, message):
    refused(tmp_path, message, release(tmp_path / "png"), **options)


def test_volumes_become_slices_of_named_subjects(tmp_path):
    for number in range(3):
        volume(tmp_path / "in" / f"OAS1_000{number}_MR1" / f"OAS1_000{number}_t88.nii.gz", number)
    volume(tmp_path / "in" / "someone.nii", 3)
    options = {"slices": 4, "size": (48, 40), "positions": (0.2, 0.8)}
    archive = make(tmp_path, tmp_path / "in", **options)
    assert archive.images.shape == (16, 48, 40)
    assert set(splits_of(archive)) == {"OAS1_0000", "OAS1_0001", "OAS1_0002", "someone"}
    assert "percentile" in archive.intensity_rule
    record = next(record for record in archive.index if record.subject == "someone")
    assert record.slice_id == "someone_slice_0"
    assert record.position == pytest.approx(0.2)
    assert record.source == "someone.nii"


def test_single_volume_goes_to_training(tmp_path):
    archive = make(tmp_path, volume(tmp_path / "sub-07_T1w.nii"), slices=2, size=(32, 32))
    assert splits_of(archive) == {"sub-07": "train"}


def test_constant_volume_among_others_is_refused(tmp_path):
    volume(tmp_path / "in" / "a.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8)), np.eye(4)), tmp_path / "in" / "b.nii")
    refused(tmp_path, r"b\.nii holds the value 1 everywhere", tmp_path / "in")


def test_phantoms_need_no_files_and_repeat_by_seed(tmp_path):
    options = {"subjects": 3, "slices": 2, "size": (48, 48)}
    first = make(tmp_path / "a", "phantom", seed=1, **options)
    assert first.images.shape == (6, 48, 48)
    assert sorted(splits_of(first).values()) == sorted(SPLITS)
    assert [record.position for record in first.index] == [0, 1] * 3
    assert make(tmp_path / "b", "phantom", seed=1, **options).content_hash == first.content_hash
    assert make(tmp_path / "c", "phantom", seed=2, **options).content_hash != first.content_hash
    refused(tmp_path, "`table` means nothing for phantoms", "phantom", table=Path("t.csv"))


@pytest.mark.real_data
def test_shared_slices_are_archived_in_half_a_minute(tmp_path, oasis_pngs):
    start = time.perf_counter()
    archive = make(tmp_path, oasis_pngs)
    assert time.perf_counter() - start < 30
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [163, 15, 11]
    assert len(archive.index) == 6048
    test = archive.images[archive.indices("test")]
    restored = archive.crop.paste(archive.crop.cut(test), archive.image_shape)
    np.testing.assert_array_equal(restored, test)
