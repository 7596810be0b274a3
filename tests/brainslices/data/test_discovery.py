import pytest
from helpers import save_image

from brainslices.data.discovery import find_candidates, find_files
from brainslices.errors import InputError


def test_visible_files_of_any_depth_are_read_and_masks_are_excluded(tmp_path):
    for name in ("b/case_1.png", "a/deep/case_2.PNG", ".hidden/case_3.png", "b/._case_1.png"):
        save_image(tmp_path / name)
    for name in ("b/seg_001_slice_0.nii.png", "FSL_SEG/case_1.png", "x_fseg.tif"):
        save_image(tmp_path / name)
    (tmp_path / "readme.txt").write_text("text")
    files = find_files(tmp_path)
    sources = [str(path.relative_to(files.root)) for path in files.paths]
    assert (files.kind, sources) == ("image", ["a/deep/case_2.PNG", "b/case_1.png"])
    assert sorted(files.excluded.values()) == [1, 2, 3]


def test_every_file_is_a_candidate_with_a_reason_unless_it_is_read(tmp_path):
    for name in ("case_1.png", "seg_1.png", ".case_2.png", "table.csv", "a.hdr", "a.img"):
        (tmp_path / name).write_bytes(b"x")
    candidates = {item.path.name: item for item in find_candidates(tmp_path)}
    assert len(candidates) == 6
    assert {name for name, item in candidates.items() if not item.excluded} == {
        "case_1.png",
        "a.hdr",
    }
    assert "mask" in candidates["seg_1.png"].excluded
    assert "hidden" in candidates[".case_2.png"].excluded
    assert "format" in candidates["table.csv"].excluded
    assert ".hdr" in candidates["a.img"].excluded


def test_single_file_is_read_relative_to_its_folder(tmp_path):
    path = save_image(tmp_path / "seg_1.png")  # the user named it: it is not excluded as a mask
    files = find_files(path)
    assert (files.root, list(files.paths), files.kind) == (tmp_path, [path], "image")


def test_analyze_pair_is_one_volume(tmp_path):
    for name in ("a.hdr", "a.img", "b.nii.gz", "lone.img"):
        (tmp_path / name).write_bytes(b"x")
    files = find_files(tmp_path)
    assert [path.name for path in files.paths] == ["a.hdr", "b.nii.gz", "lone.img"]
    assert files.kind == "volume"


def test_sources_that_do_not_exist_or_hold_nothing_or_both_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent"):
        find_files(tmp_path / "absent")
    (tmp_path / "seg_001_slice_0.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no images.*1 .*mask.*1 .*format"):
        find_files(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt"):
        find_files(tmp_path / "notes.txt")
    (tmp_path / "case_1.png").write_bytes(b"x")
    (tmp_path / "head.nii").write_bytes(b"x")
    with pytest.raises(InputError, match=r"images \(.*case_1\.png\) and volumes \(.*head\.nii\)"):
        find_files(tmp_path)
