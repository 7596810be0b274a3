import numpy as np
import pytest

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.batches import SliceBatches, in_batches
from brainslices.errors import InputError

COUNT = 50


class Numbered:
    """A fake archive whose slice i is filled with i, with a mark that reveals a flip."""

    def load(self, rows):
        images = np.repeat(np.float32(rows), 4 * 3).reshape(-1, 4, 3, 1)
        images[:, 0] += 0.5
        return images


def batches(**options):
    options = {"batch_size": 8, "seed": 3, **options}
    return SliceBatches(Numbered(), np.arange(COUNT), **options)


def numbers(data):
    return [[int(image.min()) for image in data[step][0]] for step in range(len(data))]


def test_order_depends_on_seed_and_epoch_alone():
    assert numbers(batches(epoch=2)) == numbers(batches(epoch=2))
    assert numbers(batches(epoch=2)) != numbers(batches(epoch=1))
    assert numbers(batches(seed=4)) != numbers(batches())
    data = batches()
    backwards = [data[step][0] for step in reversed(range(len(data)))][::-1]
    for step, images in enumerate(backwards):
        np.testing.assert_array_equal(images, data[step][0])


def test_the_training_loop_advances_the_epoch():
    data = batches()
    data.on_epoch_end()  # Keras calls it before the first epoch too
    assert numbers(data) == numbers(batches())
    data.epoch = 1
    assert numbers(data) == numbers(batches(epoch=1))


def test_every_slice_occurs_at_most_once_per_epoch_in_full_batches():
    data = batches()
    seen = numbers(data)
    assert len(data) == data.steps_per_epoch == COUNT // 8
    assert {len(batch) for batch in seen} == {8}
    flat = sum(seen, [])
    assert len(set(flat)) == len(flat)
    assert flat != sorted(flat)


def test_dropped_slices_change_from_epoch_to_epoch():
    seen = set()
    for epoch in range(10):
        seen.update(sum(numbers(batches(epoch=epoch)), []))
    assert seen == set(range(COUNT))


@pytest.mark.parametrize("mirror", [False, True])
def test_resuming_at_a_step_yields_the_rest_of_the_epoch(mirror):
    whole, rest = batches(mirror=mirror, epoch=1), batches(mirror=mirror, epoch=1, first_step=4)
    assert len(rest) == len(whole) - 4
    assert rest.steps_per_epoch == whole.steps_per_epoch
    for step in range(len(rest)):
        np.testing.assert_array_equal(rest[step][0], whole[step + 4][0])


def test_mirror_flips_the_rows_of_about_half_of_the_slices():
    flipped = []
    for epoch in range(20):
        plain, mirrored = batches(epoch=epoch), batches(epoch=epoch, mirror=True)
        for step in range(len(plain)):
            for one, other in zip(plain[step][0], mirrored[step][0], strict=True):
                same, reverse = (one == other).all(), (one == other[::-1]).all()
                assert same != reverse
                flipped.append(reverse)
    assert 0.4 < np.mean(flipped) < 0.6


def test_validation_yields_all_slices_in_order_with_a_partial_last_batch():
    data = batches(seed=None)
    assert len(data) == data.steps_per_epoch == 7
    seen = numbers(data)
    assert [len(batch) for batch in seen] == [8] * 6 + [2]
    assert sum(seen, []) == list(range(COUNT))
    data.on_epoch_end()
    assert numbers(data) == seen


def test_batch_size_is_at_most_the_number_of_slices():
    data = batches(batch_size=1000)
    assert (len(data), data.batch_size) == (1, COUNT)
    assert sorted(numbers(data)[0]) == list(range(COUNT))


@pytest.fixture
def archive(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 12, 10), "uint8")
    records = [SliceRecord(f"{n}", "subject", "train", 0.5, f"{n}.png") for n in range(9)]
    pairs = zip(records, images, strict=True)
    return write_archive(tmp_path / "archive", pairs, intensity_rule="noise")


def test_batches_are_float32_in_the_unit_range_with_a_channel_axis(archive):
    (images,) = SliceBatches(archive, archive.indices("train"), 5)[0]
    assert (images.shape, images.dtype) == ((5, 12, 10, 1), "float32")
    np.testing.assert_array_equal(images, archive.images[:5, ..., None] / np.float32(255))


def test_mirror_does_not_change_the_archive(archive):
    rows = archive.indices("train")
    before = archive.load(rows)
    data = SliceBatches(archive, rows, 4, seed=0, mirror=True)
    for step in range(len(data)):
        data[step]
    np.testing.assert_array_equal(archive.load(rows), before)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_have_one_size_and_keep_the_order(batch_size):
    sizes = set()

    def double(values):
        sizes.add(len(values))
        return 2 * values

    doubled = in_batches(double, batch_size, "test", np.arange(7))
    np.testing.assert_array_equal(doubled, 2 * np.arange(7))
    assert sizes == {min(batch_size, 7)}


def test_batches_of_nothing_are_refused():
    for name, size, items in (("batch_size", 0, 7), ("batch_size", -1, 7), ("count", 3, 0)):
        with pytest.raises(InputError, match=f"`{name}` must be at least 1"):
            in_batches(np.abs, size, None, np.arange(items))
