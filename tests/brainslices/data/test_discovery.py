import os
import socket

import pytest
from helpers import save_image

from brainslices.data import discovery
from brainslices.data.discovery import find_files
from brainslices.data.file_selection import FileSelection
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
    assert sorted(map(len, files.excluded.values())) == [1, 2, 3]


def test_every_file_is_read_or_has_a_reason(tmp_path):
    for name in ("seg_1.nii", ".case_2.nii", "table.csv", "a.hdr", "a.img"):
        (tmp_path / name).write_bytes(b"x")
    files = find_files(tmp_path)
    assert [path.name for path in files.paths] == ["a.hdr"]
    reasons = {path.name: reason for reason, paths in files.excluded.items() for path in paths}
    assert len(reasons) == 4
    assert "mask" in reasons["seg_1.nii"]
    assert "hidden" in reasons[".case_2.nii"]
    assert "format" in reasons["table.csv"]
    assert ".hdr" in reasons["a.img"]


def test_single_file_is_read_relative_to_its_folder(tmp_path):
    path = save_image(tmp_path / "seg_1.png")  # the user named it: it is not excluded as a mask
    files = find_files(path)
    assert (files.root, list(files.paths), files.kind) == (tmp_path, [path], "image")


def test_analyze_pair_is_one_volume(tmp_path):
    for name in ("a.hdr", "a.img", "b.nii.gz", "C.HDR", "C.IMG", "lone.img"):
        (tmp_path / name).write_bytes(b"x")
    files = find_files(tmp_path)
    assert [path.name for path in files.paths] == ["C.HDR", "a.hdr", "b.nii.gz", "lone.img"]
    assert files.kind == "volume"


def test_sources_that_do_not_exist_or_hold_nothing_or_both_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent"):
        find_files(tmp_path / "absent")
    (tmp_path / "seg_001_slice_0.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"only masks.*1 .*e\.g\. seg_001_slice_0\.png"):
        find_files(tmp_path)
    with pytest.raises(InputError, match=r"no images.*1 .*exclude, e\.g\. seg.*|1 .*format.*notes"):
        find_files(tmp_path, FileSelection(exclude=("seg*",)))
    with pytest.raises(InputError, match=r"notes\.txt"):
        find_files(tmp_path / "notes.txt")
    (tmp_path / "case_1.png").write_bytes(b"x")
    (tmp_path / "head.nii").write_bytes(b"x")
    with pytest.raises(InputError, match=r"images \(.*case_1\.png\) and volumes \(.*head\.nii\)"):
        find_files(tmp_path)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names_of(files):
    return [path.relative_to(files.root).as_posix() for path in files.paths]


# Links, and what is no file


def test_folder_links_are_followed_once_and_never_in_a_loop(tmp_path):
    touch(tmp_path / "elsewhere", "sub-04/sub-04_T1w.nii")
    source = touch(tmp_path / "in", "sub-01/sub-01_T1w.nii", "b/sub-02_T1w.nii")
    (source / "sub-04").symlink_to(tmp_path / "elsewhere" / "sub-04")
    (source / "sub-01" / "loop").symlink_to(source)
    (source / "a").symlink_to("b")  # before the folder itself in the order of names
    (source / "sub-04-again").symlink_to(tmp_path / "elsewhere" / "sub-04")
    (tmp_path / "elsewhere" / "sub-04" / "up").symlink_to(tmp_path)
    files = find_files(source)
    assert names_of(files) == [
        "b/sub-02_T1w.nii",
        "sub-01/sub-01_T1w.nii",
        "sub-04/sub-04_T1w.nii",
    ]
    assert len(files.excluded[discovery.LINKED_TWICE]) == 4


@pytest.mark.parametrize(
    ("target", "repair"),
    [
        ("../.git/annex/objects/aa/MD5E-s9.nii.gz", "datalad get.*git annex get"),
        ("/nowhere/else", "Restore"),
    ],
)
@pytest.mark.parametrize("name", ["sub-04_T1w.nii.gz", "sub-04"])
def test_links_without_a_target_are_refused_by_name(tmp_path, name, target, repair):
    touch(tmp_path, "sub-01_T1w.nii.gz")
    (tmp_path / name).symlink_to(target)
    with pytest.raises(InputError, match=rf"1 of .*{name} -> .*{repair}"):
        find_files(tmp_path, FileSelection(include=("*_T1w.nii.gz",)))
    assert len(find_files(tmp_path, FileSelection(exclude=("sub-04*",))).paths) == 1


def test_broken_links_that_would_not_be_read_are_no_error(tmp_path):
    touch(tmp_path, "sub-01_T1w.nii.gz")
    for name in ("README.md", ".cache", "sub-01_T1w.json", "sub-01_mask.nii.gz"):
        (tmp_path / name).symlink_to("nowhere")
    assert names_of(find_files(tmp_path)) == ["sub-01_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/annex/objects/MD5E-s12--aa.nii.gz\n", "git annex get"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
    ],
)
def test_placeholders_of_large_files_are_refused_with_the_repair(tmp_path, text, command):
    (tmp_path / "sub-01_T1w.nii.gz").write_text(text)
    with pytest.raises(InputError, match=rf"sub-01_T1w\.nii\.gz.*{command}"):
        find_files(tmp_path)


def test_unreadable_folder_is_refused_by_name_unless_it_is_excluded(tmp_path, monkeypatch):
    touch(tmp_path, "a/sub-01_T1w.nii", "locked/sub-02_T1w.nii")
    may_read = os.access  # a test that runs as root may read everything
    monkeypatch.setattr(
        os, "access", lambda path, mode: "locked" not in str(path) and may_read(path, mode)
    )
    with pytest.raises(InputError, match=r"locked cannot be read.*chmod"):
        find_files(tmp_path)
    assert names_of(find_files(tmp_path, FileSelection(exclude=("locked",)))) == [
        "a/sub-01_T1w.nii"
    ]


def test_fifos_and_sockets_are_named_and_never_opened(tmp_path):
    touch(tmp_path, "case_1.png")
    os.mkfifo(tmp_path / "case_2.png")  # opening it would block for ever
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "case_3.png"))
        files = find_files(tmp_path)
    assert names_of(files) == ["case_1.png"]
    assert len(files.excluded[discovery.SPECIAL]) == 3
    with pytest.raises(InputError, match=r"no regular files.*case_2\.png"):
        find_files(tmp_path / "case_2.png")


# Names


def test_label_maps_alone_are_refused_as_such(tmp_path):
    touch(tmp_path, "sub-01_dseg.nii.gz", "sub-02_dseg.nii.gz")
    with pytest.raises(InputError, match=r"only masks.*2 .*sub-01_dseg.*--label-maps"):
        find_files(tmp_path)
    assert len(find_files(tmp_path, FileSelection(label_maps=True)).paths) == 2


def test_dicom_files_name_the_converter(tmp_path):
    touch(tmp_path, "a.dcm")
    for name in ("IM0001", "DICOMDIR", "1.2.840.113619.2.5"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    with pytest.raises(InputError, match=r"4 DICOM.*dcm2niix"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*_T1w.nii.gz",), (), ["anat/s_T1w.nii.gz"]),
        (("anat",), (), ["anat/s_T1w.nii.gz", "anat/s_T2w.nii.gz"]),
        (("**/anat/*T2w*",), (), ["anat/s_T2w.nii.gz"]),
        ((), ("func", "raw", "*_T2w.*"), ["anat/s_T1w.nii.gz"]),
        ((), ("anat/", "raw/*"), ["func/s_bold.nii.gz"]),
        (("raw/*_t88_*.hdr",), (), ["raw/o_t88_gfc.hdr"]),
        (("*_t88_gfc.img",), (), ["raw/o_t88_gfc.hdr"]),
    ],
)
def test_globs_match_paths_their_ends_and_folders(tmp_path, include, exclude, expected):
    touch(tmp_path, "anat/s_T1w.nii.gz", "anat/s_T2w.nii.gz", "func/s_bold.nii.gz")
    touch(tmp_path, "raw/o_t88_gfc.hdr", "raw/o_t88_gfc.img", "raw/o_mpr-1.hdr", "raw/o_mpr-1.img")
    files = find_files(tmp_path, FileSelection(include=include, exclude=exclude))
    assert names_of(files) == expected
