import numpy as np
import pytest
from helpers import GREY, save_image
from volume_helpers import head, save_volume

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.file_selection import FileSelection
from brainslices.data.slices import open_slices
from brainslices.errors import InputError


@pytest.fixture
def archive(tmp_path):
    def pairs():
        for number, split in enumerate(("train", "train", "test", "test")):
            record = SliceRecord(f"id_{number}", f"{split}_{number}", split, 0.5, f"{number}.png")
            yield record, GREY + number

    return write_archive(tmp_path / "archive", pairs(), intensity_rule="unchanged")


def save_images(folder, *names):
    for name in names:
        save_image(folder / f"{name}.png")
    return folder


def test_split_of_an_archive_is_a_sequence_of_floats(archive):
    slices = open_slices(archive.path)
    assert (len(slices), slices.split, slices.subjects) == (2, "test", ["test_2", "test_3"])
    assert slices.archive_hash == archive.content_hash
    for row, image in enumerate(slices):
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, (GREY + row + 2) / np.float32(255))
    assert open_slices(archive.path, "train").subjects == ["train_0", "train_1"]


def test_folder_without_splits_has_all_images(tmp_path):
    folder = save_images(tmp_path, "case_002_slice_0", "case_001_slice_4", "case_001_slice_2")
    slices = open_slices(folder)
    assert (slices.split, slices.archive_hash) == (None, None)
    assert [(r.subject, r.split, r.source) for r in slices.records] == [
        ("case_001", "", "case_001_slice_2.png"),
        ("case_001", "", "case_001_slice_4.png"),
        ("case_002", "", "case_002_slice_0.png"),
    ]
    np.testing.assert_array_equal(slices.read(0), GREY)
    with pytest.raises(InputError, match="`split`.*split='test'"):
        open_slices(folder, "test")


def test_sub_folders_are_splits(tmp_path):
    folder = save_images(tmp_path, "png_train/case_001_slice_0", "png_test/case_002_slice_0")
    assert (open_slices(folder).split, open_slices(folder).subjects) == ("test", ["case_002"])
    assert open_slices(folder, "train").subjects == ["case_001"]
    with pytest.raises(InputError, match="`split`.*: test, train. Received: split='validate'"):
        open_slices(folder, "val")


def test_single_image_is_a_dataset(tmp_path):
    slices = open_slices(save_image(tmp_path / "case_001_slice_3.png"))
    assert np.isnan(slices.positions).tolist() == [True]
    np.testing.assert_array_equal(slices.read(0), GREY)


def test_images_of_any_name_are_a_dataset(tmp_path, caplog):
    folder = save_images(tmp_path / "any", "b", "a", "c_mask")
    slices = open_slices(folder)
    assert [(r.slice_id, r.subject) for r in slices.records] == [("a", "a"), ("b", "b")]
    [warning] = [line for line in caplog.messages if "Left out" in line]
    assert "1 masks or label maps, by their names, e.g. c_mask.png. --label-maps" in warning
    selection = FileSelection(pattern="(?P<subject>a)", include=("a.png",))
    assert open_slices(folder, selection=selection).subjects == ["a"]


def test_selection_does_not_apply_to_an_archive(archive):
    with pytest.raises(InputError, match="archive"):
        open_slices(archive.path, selection=FileSelection(include=("a",)))


def test_volumes_are_refused(tmp_path):
    with pytest.raises(InputError, match="prepare_data"):
        open_slices(save_volume(tmp_path / "head.nii", head()))


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\udcff"])
def test_names_that_a_figure_cannot_show_are_refused(tmp_path, caplog, name):
    caplog.set_level("ERROR")  # pytest-xdist cannot send a captured warning that is not UTF-8.
    save_images(tmp_path / "in", name, "b")
    with pytest.raises(InputError, match="must be UTF-8 text and must not have control characters"):
        open_slices(tmp_path / "in")


def test_position_of_an_image_in_a_folder_is_what_a_table_states(tmp_path):
    """The range of the numbers in a folder is not that of the training archive."""
    folder = save_images(tmp_path / "in", "case_001_slice_14", "case_001_slice_16", "other")
    assert np.isnan(open_slices(folder).positions).all()
    table = tmp_path / "table.csv"
    table.write_text("file,subject,position\ncase_001_slice_16.png,a,0.25\nother.png,b,\n")
    slices = open_slices(folder, selection=FileSelection(table=table))
    np.testing.assert_array_equal(slices.positions, np.float32([0.25, np.nan]))
