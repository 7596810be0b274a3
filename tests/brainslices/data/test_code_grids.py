import dataclasses
import math
import zipfile

import numpy as np
import pytest

from brainslices.data.code_grids import (
    SMOOTHING,
    CodeGrids,
    SplitCodes,
    entropy,
    nats_by_position,
)
from brainslices.errors import InputError

COUNTS = {"train": 7, "validate": 3, "test": 2}
GRID, NUM_EMBEDDINGS = (4, 5), 600  # more than a byte holds


def split_codes(name, count, rng):
    return SplitCodes(
        codes=rng.integers(0, NUM_EMBEDDINGS, (count, *GRID)).astype("uint16"),
        slice_ids=np.array([f"{name}/slice_{number}" for number in range(count)]),
        subjects=np.array([f"{name}_{number // 2}" for number in range(count)]),
        positions=np.linspace(0, 1, count, dtype="float32"),
    )


def code_grids(splits=COUNTS, variants=2):
    rng = np.random.default_rng(0)
    return CodeGrids(
        splits={name: split_codes(name, COUNTS[name], rng) for name in splits},
        variants=rng.integers(0, NUM_EMBEDDINGS, (variants, COUNTS["train"], *GRID), "uint16"),
        num_embeddings=NUM_EMBEDDINGS,
        grid_shape=GRID,
        image_shape=(40, 30),
        vqvae_hash="ab" * 32,
        vqvae_run="/runs/vqvae",
        archive_hash="cd" * 32,
    )


def assert_same(actual, expected):
    """Equal to the last bit, with equal types."""
    for field in dataclasses.fields(expected):
        one, other = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(other, dict):
            assert list(one) == list(other)
            for name in other:
                assert_same(one[name], other[name])
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert (type(one), one) == (type(other), other)


@pytest.fixture
def path(tmp_path):
    code_grids().save(tmp_path / "code_grids.npz")
    return tmp_path / "code_grids.npz"


def rewritten(path, drop=(), **changes):
    """The file with some of its arrays changed."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if key not in drop})
    return path


def error_message(path):
    with pytest.raises(InputError) as caught:
        CodeGrids.load(path)
    message = str(caught.value)
    assert message.count(str(path)) == 1
    assert "Run encode_codes.py" in message
    assert "\n" not in message
    return message


# The file


@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize("splits", [("train", "validate", "test"), ("train", "test")])
def test_round_trip(tmp_path, splits, variants):
    grids = code_grids(splits, variants)
    grids.save(tmp_path / "new" / "code_grids.npz")
    assert_same(CodeGrids.load(tmp_path / "new" / "code_grids.npz"), grids)
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["code_grids.npz"]
    assert [len(split) for split in grids.splits.values()] == [COUNTS[name] for name in splits]


def test_keys_are_flat_and_nothing_is_pickled(path):
    splits = [f"{name}_{key}" for name in COUNTS for key in ("codes", "slice_ids", "subjects")]
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {
            *splits,
            *(f"{name}_positions" for name in COUNTS),
            *("train_variants", "num_embeddings", "grid_shape", "image_shape"),
            *("vqvae_hash", "vqvae_run", "archive_hash", "format_version"),
        }
        assert not [key for key in file if file[key].dtype.hasobject]


def test_failure_while_saving_leaves_the_earlier_file(path, monkeypatch):
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        code_grids(variants=0).save(path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


# Refusals


def test_absent_file_is_refused(tmp_path):
    assert "does not exist" in error_message(tmp_path / "code_grids.npz")


@pytest.mark.parametrize("fraction", [0, 0.3, 0.999])
def test_truncated_file_is_refused(path, fraction):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    assert "is not a readable file of code grids (" in error_message(path)


def test_flipped_bits_are_refused(path):
    whole = bytearray(path.read_bytes())
    codes = code_grids().splits["train"].codes.tobytes()
    whole[whole.index(codes) + 20] ^= 1
    path.write_bytes(whole)
    assert "code grids (Bad CRC-32" in error_message(path)


def test_files_of_other_formats_are_refused(path):
    path.write_text("codes")
    assert "is not a readable file of code grids (" in error_message(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "is not a readable file of code grids (" in error_message(path)
    rewritten_with_objects = {"train_slice_ids": np.array([{}] * 7, object)}
    code_grids().save(path)
    assert "is not a readable file of code grids (" in error_message(
        rewritten(path, **rewritten_with_objects)
    )


@pytest.mark.parametrize("shape", [f"({2**50},)", f"({2**70},)", "(8, 4, 5)"])
def test_false_claims_of_a_header_are_refused(path, shape):
    """The CRC of the entry is right: only the shape in the header of train_codes is changed."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    old, new = b"(7, 4, 5), }", shape.encode() + b", }"
    padding = b" " * (len(new) - len(old))
    assert old + padding in entries["train_codes.npy"]
    entries["train_codes.npy"] = entries["train_codes.npy"].replace(old + padding, new)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    assert "is not a readable file of code grids (" in error_message(path)


@pytest.mark.parametrize("version", [0, 2, "1.0", [1, 1]])
def test_other_format_versions_are_refused(path, version):
    message = error_message(rewritten(path, format_version=version))
    assert f"format_version={np.array(version)}" in message
    assert "format_version=None" in error_message(rewritten(path, drop=["format_version"]))


@pytest.mark.parametrize(
    "keys",
    [
        ["train_variants"],
        ["vqvae_hash"],
        ["grid_shape", "num_embeddings"],
        ["validate_codes"],
        ["test_positions", "train_subjects"],
        [f"{name}_{key.name}" for name in COUNTS for key in dataclasses.fields(SplitCodes)],
    ],
)
def test_missing_keys_are_named(path, keys):
    assert f"lacks {', '.join(sorted(keys))})" in error_message(rewritten(path, drop=keys))


@pytest.mark.parametrize("key", ["num_embeddings", "grid_shape", "image_shape"])
@pytest.mark.parametrize("value", ["many", [1, 2, 3]])
def test_metadata_of_another_type_are_refused(path, key, value):
    assert "is not a readable" in error_message(rewritten(path, **{key: value}))


@pytest.mark.parametrize("key", ["test_codes", "train_variants"])
def test_codes_outside_the_codebook_are_refused(path, key):
    with np.load(path) as file:
        codes = file[key].copy()
    codes[..., -1, -1] = NUM_EMBEDDINGS - 1
    CodeGrids.load(rewritten(path, **{key: codes}))
    codes[-1, ..., -1, -1] = NUM_EMBEDDINGS
    message = error_message(rewritten(path, **{key: codes}))
    assert f"`{key}` must be under num_embeddings=600. Received: code 600" in message


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("test_codes", np.zeros((2, 5, 4), "uint16"), "uint16 (2, 5, 4)"),
        ("test_codes", np.zeros((2, 4, 5), "int64"), "int64 (2, 4, 5)"),
        ("test_codes", np.uint16(0), "uint16 ()"),
        ("test_codes", np.zeros((3, 4, 5), "uint16"), "`test_slice_ids` must have shape (3,)"),
        ("grid_shape", (5, 4), "(n, 7, 5, 4)"),
        ("train_variants", np.zeros((2, 6, 4, 5), "uint16"), "(n, 7, 4, 5)"),
        ("train_variants", np.zeros((7, 4, 5), "uint16"), "(n, 7, 4, 5)"),
        ("train_subjects", np.array(["a"]), "(1,)"),
        ("validate_positions", np.zeros((3, 1)), "(3, 1)"),
    ],
)
def test_shapes_that_disagree_are_refused(path, key, value, fault):
    message = error_message(rewritten(path, **{key: value}))
    assert fault in message


# Entropies


def test_entropy_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 9, (50, *GRID)) ** 2
    frequencies = [np.mean(codes == code) for code in range(100)]
    expected = -sum(frequency * math.log(frequency) for frequency in frequencies if frequency)
    assert entropy(codes, 100) == pytest.approx(expected)


def test_entropy_of_one_code_is_0_and_of_all_alike_the_logarithm():
    codes = np.arange(16, dtype="uint16").reshape(16, 1, 1)
    assert entropy(codes, 16) == pytest.approx(math.log(16))
    assert entropy(np.full((8, 2, 2), 3, "uint16"), 16) == 0
    assert nats_by_position(codes, codes, 16) == pytest.approx(math.log(16))


def test_cost_by_position_is_that_of_smoothed_frequencies():
    rng = np.random.default_rng(0)
    train_codes, codes = rng.integers(0, 9, (50, *GRID)) ** 2, rng.integers(0, 100, (7, *GRID))
    costs = []
    for index in np.ndindex(codes.shape):
        code, (row, col) = codes[index], index[1:]
        overall = (np.sum(train_codes == code) + 1) / (train_codes.size + 100)
        here = np.sum(train_codes[:, row, col] == code)
        costs.append(-math.log((here + SMOOTHING * overall) / (50 + SMOOTHING)))
    assert nats_by_position(codes, train_codes, 100) == pytest.approx(np.mean(costs))


def test_codes_that_their_position_determines_cost_little_by_position():
    codes = np.broadcast_to(np.arange(20).reshape(GRID), (2000, *GRID))
    assert entropy(codes, 20) == pytest.approx(math.log(20))
    assert nats_by_position(codes[:3], codes, 20) < 0.05
    # Few training grids that look determined are no proof: random codes stay expensive.
    random = np.random.default_rng(0).integers(0, 20, (9, *GRID))
    assert nats_by_position(random[1:], random[:1], 20) > 0.95 * math.log(20)


def test_entropies_do_not_depend_on_the_order_of_the_slices():
    codes = code_grids().splits["train"].codes
    turned = codes[::-1]
    assert entropy(turned, NUM_EMBEDDINGS) == entropy(codes, NUM_EMBEDDINGS)
    assert nats_by_position(codes, turned, NUM_EMBEDDINGS) == pytest.approx(
        nats_by_position(turned, codes, NUM_EMBEDDINGS)
    )
