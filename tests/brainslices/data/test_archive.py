import errno
import json
import resource
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from brainslices.data.archive import FOREGROUND_THRESHOLD, SPLITS, SliceArchive, SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.crop import CropBox
from brainslices.errors import InputError


def record(number, split="train", **changes):
    known = SliceRecord(f"id_{number}", f"{split}_{number // 2}", split, 0.25, f"file_{number}.png")
    return replace(known, **changes)


def pairs(count=6, shape=(20, 24), split_of=lambda n: SPLITS[n // 2 % 3], seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = np.zeros(shape, np.uint8)
        image[3:10, 5:14] = rng.integers(100, 256, (7, 9))
        yield record(number, split_of(number)), image


def write(folder, slices=None, **options):
    options.setdefault("intensity_rule", "unchanged")
    return write_archive(folder, pairs() if slices is None else slices, **options)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_archive_round_trip(tmp_path):
    written = list(pairs())
    archive = write(tmp_path / "archive", written)
    again = SliceArchive.open(tmp_path / "archive")
    assert again.index == archive.index == [record for record, _ in written]
    np.testing.assert_array_equal(again.images, [image for _, image in written])
    assert again.image_shape == (20, 24)
    assert again.intensity_rule == "unchanged"
    assert again.counts == {split: {"subjects": 1, "slices": 2} for split in SPLITS}
    metadata = json.loads((tmp_path / "archive" / "archive.json").read_text())
    assert metadata["counts"] == again.counts
    assert files(tmp_path) == ["archive"]
    assert files(tmp_path / "archive") == ["archive.json", "index.csv", "slices.npy"]


def test_archive_that_is_replaced_while_it_is_open_is_noticed(tmp_path):
    """Its rows are other slices: of test subjects, perhaps, where training slices were."""
    archive = write(tmp_path / "archive")
    write(tmp_path / "archive", overwrite=True)  # the same content
    np.testing.assert_array_equal(archive.images, SliceArchive.open(archive.path).images)
    other = [(record, 255 - image) for record, image in pairs()]
    write(tmp_path / "archive", other, overwrite=True)
    with pytest.raises(InputError, match="archive was replaced by another one"):
        archive.load([0])
    np.testing.assert_array_equal(SliceArchive.open(archive.path).images[0], other[0][1])


def test_load_returns_floats_in_the_unit_range_in_the_order_of_the_rows(tmp_path):
    archive = write(tmp_path / "archive")
    rows = np.array([4, 1])
    images = archive.load(rows)
    assert images.shape == (2, 20, 24, 1)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(np.rint(images[..., 0] * 255), archive.images[[4, 1]])
    assert images.max() <= 1
    assert [archive.index[row].subject for row in rows] == ["test_2", "train_0"]


def test_indices_are_the_rows_of_a_split_under_any_of_its_names(tmp_path):
    archive = write(tmp_path / "archive")
    assert archive.indices("validate").tolist() == [2, 3]
    assert archive.indices("val").tolist() == archive.indices("Validation").tolist() == [2, 3]
    assert archive.indices("test").dtype == np.int64


def test_indices_of_an_unknown_or_empty_split_are_refused(tmp_path):
    archive = write(tmp_path / "archive", pairs(split_of=lambda n: "train"))
    with pytest.raises(InputError, match="`split`.*split='holdout'"):
        archive.indices("holdout")
    with pytest.raises(InputError, match="`split`.*: train. Received: split='test'"):
        archive.indices("test")


def test_opening_reads_no_pixels(tmp_path):
    write(tmp_path / "archive")
    (tmp_path / "archive" / "slices.npy").unlink()
    archive = SliceArchive.open(tmp_path / "archive")
    assert len(archive.indices("train")) == 2
    with pytest.raises(InputError, match=r"slices\.npy is not a readable"):
        archive.load([0])


def test_content_hash_depends_only_on_pixels_and_index(tmp_path):
    hashes = [
        write(tmp_path / str(number), slices).content_hash
        for number, slices in enumerate(
            (pairs(), pairs(), pairs(seed=1), ((replace(r, position=0.5), i) for r, i in pairs()))
        )
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert len(hashes[0]) == 64


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_crop_is_the_smallest_box_around_the_training_content(tmp_path, multiple):
    rng = np.random.default_rng(multiple)
    for trial in range(8):
        shape = tuple(rng.integers(9, 40, 2))
        image = np.zeros(shape, np.uint8)
        top, left = (rng.integers(0, size) for size in shape)
        image[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = 200
        other = np.full(shape, 255, np.uint8)
        slices = [(record(0), image), (record(2, "test"), other)]
        archive = write(tmp_path / str(trial), slices, grid_multiple=multiple)
        crop, batch = archive.crop, image[np.newaxis]
        np.testing.assert_array_equal(crop.paste(crop.cut(batch), shape), batch)
        content = np.argwhere(image > FOREGROUND_THRESHOLD * 255)
        tight = content.max(axis=0) - content.min(axis=0) + 1
        assert (crop.rows, crop.cols) == tuple(-(-tight // multiple) * multiple)
        if crop.rows <= shape[0]:
            assert 0 <= crop.top <= shape[0] - crop.rows


def test_crop_uses_the_foreground_threshold(tmp_path):
    image = np.zeros((16, 16), np.uint8)
    image[2:5, 3:6] = 6  # 0.0235 of full scale
    image[12, 12] = 5  # 0.0196
    assert write(tmp_path / "a", [(record(0), image)], grid_multiple=1).crop == CropBox(2, 3, 3, 3)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            (record(1, "test", subject="train_0"), np.zeros((20, 24), np.uint8)),
            "'train_0' is in two splits.*file_0.png.*file_1.png",
        ),
        (
            (record(1), np.zeros((20, 25), np.uint8)),
            r"file_0.png has 20 x 24 .*file_1.png has 20 x 25",
        ),
        (
            (record(1, slice_id="id_0"), np.zeros((20, 24), np.uint8)),
            "'id_0'.*file_0.png.*file_1.png",
        ),
        ((record(1), np.zeros((20, 24))), "Received: file_1.png as float64"),
        ((record(1, "holdout"), np.zeros((20, 24), np.uint8)), "split='holdout'"),
        ((record(1, position=np.nan), np.zeros((20, 24), np.uint8)), "position=nan"),
    ],
)
def test_slices_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, second, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "deep" / "archive", [next(pairs()), second])
    assert files(tmp_path) == []


def test_no_slices_and_black_slices_are_refused(tmp_path):
    with pytest.raises(InputError, match="`slices`.*Received: none"):
        write(tmp_path / "archive", [])
    with pytest.raises(InputError, match="black"):
        write(tmp_path / "archive", [(record(0), np.zeros((8, 8), np.uint8))])
    assert files(tmp_path) == []


def test_existing_archive_is_replaced_only_with_overwrite(tmp_path):
    folder = tmp_path / "archive"
    first = write(folder).content_hash
    with pytest.raises(InputError, match="already holds.*--overwrite"):
        write(folder, pairs(seed=1))
    assert SliceArchive.open(folder).content_hash == first
    assert write(folder, pairs(seed=1), overwrite=True).content_hash != first
    assert files(tmp_path) == ["archive"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_overwrite_keeps_the_old_archive(tmp_path, stop):
    def interrupted():
        yield from pairs(seed=1)
        raise stop

    first = write(tmp_path / "archive").content_hash
    with pytest.raises(stop):
        write(tmp_path / "archive", interrupted(), overwrite=True)
    assert files(tmp_path) == ["archive"]
    archive = SliceArchive.open(tmp_path / "archive")
    assert archive.content_hash == first
    assert archive.load([5]).any()


def test_folders_with_other_files_are_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        write(tmp_path, overwrite=True)
    with pytest.raises(InputError, match=r"notes\.txt"):
        write(tmp_path / "notes.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert files(tmp_path) == ["empty", "notes.txt"]
    (tmp_path / "empty" / "notes.txt").write_text("mine, beside an archive")
    with pytest.raises(InputError, match=r"notes\.txt"):
        write(tmp_path / "empty", overwrite=True)


def test_full_disk_is_an_error_that_names_the_folder(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="archive") as caught:
            write(tmp_path / "archive", pairs(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "archive")
    assert files(tmp_path) == []


def test_writing_holds_few_slices_in_memory(tmp_path):
    tracemalloc.start()
    try:
        write(tmp_path / "archive", pairs(150, (256, 256)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6  # of 10 MB of pixels


def change_json(folder, **changes):
    path = folder / "archive.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_text(path, old, new, count=-1):
    path.write_text(path.read_text().replace(old, new, count))


def change_header(folder, old, new):
    path = folder / "slices.npy"
    content = path.read_bytes()
    padded = old.encode() + b", }" + b" " * len(new)
    assert padded in content
    path.write_bytes(content.replace(padded, new.encode() + b", }" + b" " * len(old)))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "archive.json").unlink(), "no archive.json"),
        (lambda f: (f / "archive.json").write_text("{"), r"archive\.json is not a readable"),
        (lambda f: change_json(f, format_version=9), "format_version=9"),
        (lambda f: (f / "archive.json").write_text('{"format_version": 1}'), "content_hash"),
        (lambda f: (f / "index.csv").unlink(), r"index\.csv is not a readable"),
        (lambda f: (f / "index.csv").write_text(""), r"index\.csv is corrupt"),
        (lambda f: (f / "index.csv").write_text("a,b\n1,2\n"), "its columns are a, b"),
        (
            lambda f: (f / "index.csv").write_text("slice_id,subject,split,position,source\n"),
            "0 sl",
        ),
        (lambda f: replace_text(f / "index.csv", "0.25", "nan", 1), "line 2.*position=nan"),
        (lambda f: replace_text(f / "index.csv", "0.25", "1.5", 1), "line 2.*position=1.5"),
        (lambda f: replace_text(f / "index.csv", ",test,", ",dev,"), "line 6.*split='dev'"),
        (
            lambda f: replace_text(f / "index.csv", "file_5", '"file_5'),
            r"index\.csv is not a readable",
        ),
        (lambda f: (f / "archive.json").write_text("[1]"), r"archive\.json is not a readable"),
        (lambda f: change_json(f, format_version="1"), "`format_version`.*'1'"),
        (lambda f: change_json(f, image_shape=[20, -24]), r"`image_shape`.*\[20, -24\]"),
        (lambda f: change_json(f, image_shape=[20, 24, 1]), r"`image_shape`.*\[20, 24, 1\]"),
        (lambda f: change_json(f, crop=[0, 0, 8, 8]), r"`crop`.*\[0, 0, 8, 8\]"),
        (lambda f: change_json(f, crop={"top": 0, "left": 0, "rows": 0, "cols": 8}), "`rows`"),
        (lambda f: change_json(f, crop={"top": 0, "left": 0.5, "rows": 8, "cols": 8}), "`left`"),
        (lambda f: change_json(f, crop={"top": 99, "left": 0, "rows": 8, "cols": 8}), "`crop`.*99"),
        (lambda f: change_json(f, content_hash="beef"), "`content_hash`.*'beef'"),
        (lambda f: change_json(f, intensity_rule=None), "`intensity_rule`.*None"),
        (lambda f: change_json(f, counts={}), r"index\.csv is corrupt.*counts"),
        (lambda f: truncate(f / "slices.npy"), r"slices\.npy is not a readable"),
        (lambda f: change_header(f, "(6, 20, 24)", "(2**9, 20)"), r"slices\.npy is not a readable"),
        (
            lambda f: change_header(f, "(6, 20, 24)", f"({2**70},)"),
            r"slices\.npy is not a readable",
        ),
        (lambda f: np.save(f / "slices.npy", np.zeros(3)), r"holds float64 \(3,\), expected uint8"),
    ],
)
def test_corrupt_archive_is_refused_by_file(tmp_path, damage, message):
    write(tmp_path / "archive")
    damage(tmp_path / "archive")
    with pytest.raises(InputError, match=message):
        SliceArchive.open(tmp_path / "archive").load([0])
