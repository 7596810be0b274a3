from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import GREY, save_image

from brainslices.data import sources
from brainslices.data.discovery import find_files
from brainslices.data.file_selection import FileSelection
from brainslices.data.preparation import SourceConfig, make_archive
from brainslices.data.sources import read_source
from brainslices.errors import InputError

MASK = np.where(GREY > 50, 255, 0).astype(np.uint8)
HEAD = np.random.default_rng(0).integers(50, 200, (12, 12, 12)).astype(np.int16)


def read(source, **selection):
    lines = []
    selection = FileSelection(**selection)
    files, metadata = read_source(find_files(source, selection), selection, report=lines.append)
    return files, [item.source for item in metadata], lines


def save_volume(path, voxels=HEAD):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([10, 10, 10, 1])), path)


def test_label_maps_are_left_out_by_their_values_whatever_their_names(tmp_path):
    for k in range(3):
        save_volume(tmp_path / f"sub-0{k}" / f"sub-0{k}_T1w.nii.gz")
        save_volume(tmp_path / f"sub-0{k}" / f"sub-0{k}_tissue.nii.gz", HEAD // 60)
        save_volume(tmp_path / f"sub-0{k}" / f"sub-0{k}_dseg.nii.gz", HEAD // 60)
    save_volume(tmp_path / "sub-09_T1w.nii.gz", (HEAD > 100).astype(np.float32))
    _, names, lines = read(tmp_path)
    assert names == [f"sub-0{k}/sub-0{k}_T1w.nii.gz" for k in range(3)]
    assert lines == [
        "read      3 T1w volumes, e.g. sub-00/sub-00_T1w.nii.gz",
        f"left out  4 {sources.LABEL_VALUES}, e.g. sub-00/sub-00_tissue.nii.gz",
        "left out  3 masks or label maps, by their names, e.g. sub-00/sub-00_dseg.nii.gz",
    ]
    assert len(read(tmp_path, label_maps=True)[1]) == 10


def test_images_of_labels_are_left_out_but_no_dark_slices_of_a_stack(tmp_path):
    dark = np.zeros_like(GREY)
    dark[0, 0], dark[0, 1] = 1, 2
    for number, pixels in enumerate((dark * 0, dark, GREY, GREY, dark)):
        save_image(tmp_path / "stack" / f"case_001_slice_{number}.png", pixels)
    save_image(tmp_path / "x" / "case_002_slice_0.png", MASK)
    save_image(tmp_path / "x" / "case_003_slice_0.png", dark)  # no stack says that it is dark
    files, names, _ = read(tmp_path)
    assert names == [f"stack/case_001_slice_{number}.png" for number in range(5)]
    assert [path.name for path in files.excluded[sources.LABEL_VALUES]] == [
        "case_002_slice_0.png",
        "case_003_slice_0.png",
    ]


def test_source_of_label_maps_alone_is_refused_as_such(tmp_path):
    save_image(tmp_path / "case_002_slice_0.png", MASK)
    for source in (tmp_path, tmp_path / "case_002_slice_0.png"):
        with pytest.raises(InputError, match=r"only masks.*case_002_slice_0.png.*--label-maps"):
            read(source)


def test_files_of_a_table_are_judged_by_their_values_alone(tmp_path):
    save_image(tmp_path / "in" / "a_mask.png")
    save_image(tmp_path / "in" / "b.png", MASK)
    save_image(tmp_path / "in" / "c.png")
    table = tmp_path / "table.csv"
    table.write_text("file,subject\na_mask.png,a\n./b.png,b\n")
    assert read(tmp_path / "in", table=table)[1] == ["a_mask.png"]
    table.write_text("file,subject\nc.png,a\n../c.png,b\n")
    with pytest.raises(InputError, match=r"table\.csv, line 3.*file='\.\./c\.png'"):
        read(tmp_path / "in", table=table)


def test_several_contrasts_make_one_warning(tmp_path, caplog):
    for k in range(3):
        for contrast in ("T1w", "T2w"):
            save_volume(tmp_path / f"sub-0{k}_{contrast}.nii.gz")
    _, _, lines = read(tmp_path)
    assert [line.split()[:3] for line in lines] == [["read", "3", "T1w"], ["read", "3", "T2w"]]
    assert caplog.text.count("several contrasts (T1w, T2w)") == 1
    assert len(read(tmp_path, include=("*_T1w*",))[1]) == 3


def test_corrupt_files_are_kept_for_their_reader_to_refuse(tmp_path):
    save_image(tmp_path / "case_001_slice_0.png")
    (tmp_path / "case_001_slice_1.png").write_bytes(b"no image")
    assert len(read(tmp_path)[1]) == 2


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_file_that_the_disk_cannot_read_is_named(tmp_path):
    save_image(tmp_path / "case_001_slice_0.png")
    (tmp_path / "case_002_slice_0.png").symlink_to("/proc/self/mem")
    (tmp_path / "IM0001").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"case_002_slice_0\.png cannot be read: Input/output"):
        make_archive(SourceConfig(source=str(tmp_path), out=tmp_path / "out"))


def test_include_and_exclude_apply_to_a_table_of_files(tmp_path):
    for number in range(3):
        save_image(tmp_path / "png" / f"{number}.png")
    table = tmp_path / "table.csv"
    table.write_text("file,subject\n0.png,a\n1.png,b\n2.png,c\n")
    _, names, _ = read(tmp_path / "png", table=table, exclude=("1.png",))
    assert names == ["0.png", "2.png"]
    _, names, _ = read(tmp_path / "png", table=table, include=("[12].png",))
    assert names == ["1.png", "2.png"]
    table.write_text("file,subject\n0.png,a\n")
    with pytest.raises(InputError, match=r"leave out all 1 files of the table .*table\.csv"):
        read(tmp_path / "png", table=table, exclude=("0.*",))
