import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import GREY, save_image

from brainslices.data.archive import SliceArchive
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.data.splits import SPLITS
from brainslices.errors import InputError

RELEASE_HASH = "5a19c2d51193ed4742ece1407be9ae60b62796a27fe8579ccc052e8fa71ba494"
OASIS_HASH = "72df88d0db3f4c9a8fa15691e53da5a002beb68d4b7bc1ec2d85d710a902efee"


def release(root, splits=(("train", (1, 2)), ("validate", (3,)), ("test", (4,)))):
    """Write a small copy of the public release: split folders, two slices a subject, masks."""
    for split, subjects in splits:
        for subject in subjects:
            for number in range(2):
                name = f"_{subject:03d}_slice_{number}.nii.png"
                save_image(root / f"keras_png_slices_{split}" / f"case{name}", GREY + subject)
                save_image(root / f"keras_png_slices_seg_{split}" / f"seg{name}")
    return root


def save_volume(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros((16, 18, 14), np.float32)
    voxels[3:13, 3:15, 2:12] = np.random.default_rng(seed).uniform(50, 100, (10, 12, 10))
    nib.save(nib.Nifti1Image(voxels, np.diag([8, 8, 8, 1])), path)
    return path


def make(tmp_path, source, **options):
    return make_archive(SourceConfig(source=str(source), out=tmp_path / "archive", **options))


def assert_refused(tmp_path, message, source, **options):
    """Assert that the source is refused with a message and that nothing is written."""
    with pytest.raises(InputError, match=message):
        make(tmp_path, source, **options)
    assert not (tmp_path / "archive").exists()
    assert not list(tmp_path.glob(".archive*"))


def splits_of(archive):
    return {record.subject: record.split for record in archive.index}


def test_release_keeps_its_splits_and_excludes_masks(tmp_path):
    archive = make(tmp_path, release(tmp_path / "png"))
    assert splits_of(archive) == {
        "case_001": "train",
        "case_002": "train",
        "case_003": "validate",
        "case_004": "test",
    }
    assert [record.position for record in archive.index] == [0, 1] * 4
    np.testing.assert_array_equal(archive.images[:, 0, 0], [1, 1, 2, 2, 3, 3, 4, 4])
    # Runs record the hash of their archive: it must not change from version to version.
    assert archive.content_hash == RELEASE_HASH


def test_images_without_split_folders_are_split_by_subject_and_seed(tmp_path):
    for subject in range(10):
        for number in range(3):
            save_image(tmp_path / "png" / str(number) / f"case_{subject:03d}_slice_{number}.png")
    archive = make(tmp_path, tmp_path / "png", fractions=(0.6, 0.2, 0.2), seed=5)
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [6, 2, 2]
    assert archive.counts["train"]["slices"] == 18
    again = make(tmp_path, tmp_path / "png", fractions=(0.6, 0.2, 0.2), seed=5, overwrite=True)
    assert again.content_hash == archive.content_hash


def test_fewer_subjects_are_drawn_in_proportion_from_each_split(tmp_path):
    splits = ("train", range(12)), ("validate", range(12, 15)), ("test", (15,))
    source = release(tmp_path / "png", splits)
    archive = make(tmp_path, source, subjects=8)
    assert Counter(splits_of(archive).values()) == {"train": 6, "validate": 2, "test": 1}
    assert len(archive.index) == 9 * 2
    again = make(tmp_path / "again", source, subjects=8)
    assert splits_of(again) == splits_of(archive)
    assert len(splits_of(make(tmp_path / "all", source, subjects=99))) == 16


def test_mixed_sizes_are_refused(tmp_path):
    root = release(tmp_path / "png")
    save_image(root / "keras_png_slices_test" / "case_004_slice_2.png", GREY.T)
    assert_refused(tmp_path, r"12 x 10 .*case_004_slice_2\.png has 10 x 12", root)


def test_file_listed_twice_is_refused(tmp_path):
    root = release(tmp_path / "png")
    name = "keras_png_slices_train/case_001_slice_0.nii.png"
    (tmp_path / "table.csv").write_text(f"file,subject\n{name},a\n{name},a\n")
    assert_refused(tmp_path, "'case_001_slice_0'", root, table=tmp_path / "table.csv")


def test_corrupt_image_among_many_is_named_and_nothing_is_written(tmp_path):
    root = release(tmp_path / "png", (("train", range(40)),))
    (root / "keras_png_slices_train" / "case_030_slice_1.nii.png").write_bytes(b"")
    assert_refused(tmp_path, r"case_030_slice_1\.nii\.png.*empty", root)


def test_existing_archive_is_refused_before_anything_is_read(tmp_path):
    make(tmp_path, release(tmp_path / "png"))
    with pytest.raises(InputError, match="already holds"):
        make(tmp_path, tmp_path / "absent")


def test_validation_is_drawn_from_train_by_the_fractions_and_reported(tmp_path):
    source = release(tmp_path / "png", (("train", range(10)), ("test", (10, 11))))
    lines = []
    config = SourceConfig(
        source=str(source), out=tmp_path / "archive", fractions=(0.5, 0.5, 0), seed=2
    )
    archive = make_archive(config, report=lines.append)
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [5, 5, 2]
    assert {name for name, split in splits_of(archive).items() if split == "test"} == {
        "case_010",
        "case_011",
    }
    assert lines == [
        "read      24 images, e.g. keras_png_slices_test/case_010_slice_0.nii.png",
        "left out  24 masks or label maps, by their names, e.g. "
        "keras_png_slices_seg_test/seg_010_slice_0.nii.png",
        "splits    of the source; validate is 5 subjects of its train",
    ]


def test_same_names_in_two_split_folders_are_two_slices(tmp_path):
    for split in ("Training", "Testing"):
        for number in range(3):
            save_image(tmp_path / "png" / split / f"{number}.png")
    table = tmp_path / "table.tsv"
    table.write_text(
        "File\tSubject\tSplit\n"
        + "".join(f"{s}/{n}.png\t{s}{n}\t{s}\n" for s in ("Training", "Testing") for n in range(3))
    )
    by_table = make(tmp_path / "a", tmp_path / "png", table=table)
    by_name = make(tmp_path / "b", tmp_path / "png", pattern=r"(?P<subject>\w+/\d)\.png")
    for archive in (by_table, by_name):
        assert {record.slice_id for record in archive.index} == {
            f"{split}/{number}" for split in ("Training", "Testing") for number in range(3)
        }
        assert [archive.counts[split]["subjects"] for split in SPLITS] == [2, 1, 3]


def test_bids_sessions_stay_in_one_split_and_masks_are_left_out(tmp_path):
    for subject in range(1, 5):
        for session in ("test", "retest"):
            stem = f"sub-{subject:02}_ses-{session}"
            folder = tmp_path / "in" / f"sub-{subject:02}" / f"ses-{session}" / "anat"
            save_volume(folder / f"{stem}_T1w.nii.gz", subject)
            save_volume(folder / f"{stem}_desc-brain_mask.nii.gz", subject)
    archive = make(tmp_path, tmp_path / "in", slices=2, size=(32, 32))
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [2, 1, 1]
    assert len(archive.index) == 16
    assert len(splits_of(archive)) == 4


def test_subject_whose_slices_are_all_black_is_named(tmp_path):
    source = release(tmp_path / "png")
    for number in (0, 1):
        name = f"case_002_slice_{number}.nii.png"
        save_image(source / "keras_png_slices_train" / name, GREY * 0 + 5)
    assert_refused(tmp_path, r"1 subjects are black, e\.g\. of 'case_002' from .*case_002", source)
    assert "case_002" not in splits_of(make(tmp_path, source, exclude=("case_002*",)))


def test_file_name_with_a_control_character_keeps_the_sound_archive(tmp_path):
    source = release(tmp_path / "png")
    archive = make(tmp_path, source)
    save_image(source / "keras_png_slices_train" / "case_009_slice_0\r.png")
    with pytest.raises(InputError, match="control characters"):
        make(tmp_path, source, overwrite=True)
    assert SliceArchive.open(archive.path) == archive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ("absent*",)}, "not matched by --include"),
        ({"pixel_mm": 0.5}, r"`pixel_mm`.*pixel_mm=0.5"),
        ({"pixel_mm": 0.0}, r"`pixel_mm` must be from 0.001 to 100.*pixel_mm=0.0"),
        ({"window": (9, 9)}, r"`window`.*window=\(9, 9\)"),
        ({"positions": (0.1, 0.2)}, r"`positions`.*positions=\(0.1, 0.2\)"),
        ({"fractions": (0.5, 0.2, 0.2)}, r"`fractions`.*fractions=\(0.5, 0.2, 0.2\)"),
        ({"fractions": (1.5, -0.5, 0)}, r"`fractions`.*fractions=\(1.5, -0.5, 0\)"),
        ({"positions": (0, 1), "positions_mm": (0, 9)}, "`positions` or `positions_mm`"),
        ({"positions": (0.9, 0.2)}, r"`positions`.*positions=\(0.9, 0.2\)"),
        ({"slices": 0}, "`slices`.*slices=0"),
        ({"size": (4, 64)}, r"`size`.*size=\(4, 64\)"),
    ],
)
def test_flags_that_do_not_apply_are_refused(tmp_path, options, message):
    assert_refused(tmp_path, message, release(tmp_path / "png"), **options)


def test_volumes_become_slices_of_named_subjects(tmp_path):
    for number in range(3):
        folder = tmp_path / "in" / f"OAS1_000{number}_MR1"
        save_volume(folder / f"OAS1_000{number}_t88.nii.gz", number)
    save_volume(tmp_path / "in" / "someone.nii", 3)
    options = {"slices": 4, "size": (48, 40), "positions": (0.2, 0.8)}
    archive = make(tmp_path, tmp_path / "in", **options)
    assert archive.images.shape == (16, 48, 40)
    assert set(splits_of(archive)) == {"OAS1_0000", "OAS1_0001", "OAS1_0002", "someone"}
    assert "percentile" in archive.intensity_rule
    record = next(record for record in archive.index if record.subject == "someone")
    assert record.slice_id == "someone_slice_0"
    assert record.position == pytest.approx(0.2)
    assert record.source == "someone.nii"


def test_single_volume_is_for_training(tmp_path):
    archive = make(tmp_path, save_volume(tmp_path / "sub-07_T1w.nii"), slices=2, size=(32, 32))
    assert splits_of(archive) == {"sub-07": "train"}


def test_constant_volume_among_others_is_refused(tmp_path):
    save_volume(tmp_path / "in" / "a.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8)), np.eye(4)), tmp_path / "in" / "b.nii")
    assert_refused(tmp_path, r"b\.nii holds the value 1", tmp_path / "in")


def test_phantoms_need_no_files_and_repeat_by_seed(tmp_path):
    options = {"subjects": 3, "slices": 2, "size": (32, 32)}
    first = make(tmp_path / "a", "phantom", seed=1, **options)
    assert first.images.shape == (6, 32, 32)
    assert sorted(splits_of(first).values()) == sorted(SPLITS)
    assert [record.position for record in first.index] == [0, 1] * 3
    assert make(tmp_path / "b", "phantom", seed=1, **options).content_hash == first.content_hash
    assert_refused(tmp_path, "`table`.*table=t.csv", "phantom", table=Path("t.csv"))


@pytest.mark.slow
@pytest.mark.real_data
def test_public_release_keeps_its_content_hash(tmp_path, oasis_pngs):
    archive = make(tmp_path, oasis_pngs)
    assert [archive.counts[split]["subjects"] for split in SPLITS] == [163, 15, 11]
    assert len(archive.index) == 6048
    assert archive.content_hash == OASIS_HASH
    test = archive.images[archive.indices("test")]
    restored = archive.crop.paste(archive.crop.cut(test), archive.image_shape)
    np.testing.assert_array_equal(restored, test)


def test_size_and_window_read_images_of_several_sizes_and_16_bits(tmp_path):
    ramp = np.linspace(0, 4000, 40 * 30).reshape(40, 30).astype(np.uint16)
    for subject, image in enumerate((ramp, ramp[:, :20], ramp[10:], ramp)):
        save_image(tmp_path / "png" / f"case_{subject:03d}_slice_0.png", image)
    archive = make(tmp_path, tmp_path / "png", size=(32, 24), window=(0, 4000))
    assert archive.image_shape == (32, 24)
    means = archive.images.reshape(4, -1).mean(axis=1)
    assert (means > 60).all() and archive.images.max() > 240
    rule = json.loads((archive.path / "archive.json").read_text())["intensity_rule"]
    assert rule == "grey levels from 0 to 4000 of the images become 0..255, linear, clipped"
