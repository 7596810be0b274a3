import dataclasses
import json

import numpy as np
import pytest
from helpers import save_image
from PIL import Image
from training_runs import contents

from brainslices.csv_files import read_rows
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import named_interval
from pixelcnn import generate
from pixelcnn.generate import (
    FILES,
    Samples,
    decode_batches,
    spread_positions,
    summary,
    write_samples,
)

CROP = CropBox(12, 8, 40, 48)
METADATA = {"seed": 3, "temperature": 0.9, "top_k": None, "top_p": None, "prior_hash": "abc"}
GRID = (2, 3)


def grids(count, seed=0):
    """Codes below 50 and their log-probabilities, in batches of 4."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 50, (count, *GRID), "int32")
    log_prob = -rng.random((count, *GRID), "float32")
    for start in range(0, count, 4):
        span = slice(start, start + 4)
        yield {"codes": codes[span], "log_prob": log_prob[span]}


def decode(codes, side=64):
    """Images with a rectangle of grey level 4 * code for each code."""
    cells = np.kron(codes, np.ones((-(-side // GRID[0]), -(-side // GRID[1]))))
    return (4 * cells[:, :side, :side, None] / 255).astype("float32")


@pytest.fixture
def write(tmp_path):
    def call(count=6, name="out", **options):
        batches = decode_batches(options.pop("codes", grids(count)), options.pop("decode", decode))
        positions = options.pop("positions", spread_positions(count, (0, 1)))
        original, groups = options.pop("original", None), options.pop("groups", ())
        samples = Samples(batches, positions, METADATA, original, groups=groups)
        out = tmp_path / name
        return out, write_samples(out, samples, **{"crop": CROP, **options})

    return call


@pytest.fixture
def sheet(monkeypatch):
    """The arguments of the contact sheet, which is replaced by a small image."""
    arguments = {}

    def draw(path, images, labels, nearest=None, columns=None):
        arguments.update(images=images, labels=labels, nearest=nearest)
        save_image(path)

    monkeypatch.setattr(generate, "contact_sheet", draw)
    return arguments


def read(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


# Positions


def test_positions_are_spread_over_the_trained_range():
    np.testing.assert_allclose(spread_positions(3, (0.1, 0.9)), [0.1, 0.5, 0.9])
    assert spread_positions(3, (0.1, 0.9)).dtype == np.float32


def test_single_slice_is_at_the_middle_position():
    np.testing.assert_allclose(spread_positions(1, (0.2, 0.6)), [0.4])


@pytest.mark.parametrize(("count", "number"), [(31, 31), (32, 32), (33, 32), (100, 32), (256, 32)])
def test_many_slices_share_positions_evenly(count, number):
    positions, counts = np.unique(spread_positions(count, (0, 1)), return_counts=True)
    assert (len(positions), counts.sum()) == (number, count)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("count", "number"), [(2, 1), (3, 1), (16, 8), (63, 31), (256, 32)])
def test_a_minimum_of_slices_shares_each_position(count, number):
    spread = spread_positions(count, (0, 1), per_position=2)
    positions, counts = np.unique(spread, return_counts=True)
    assert (len(positions), counts.min() >= 2) == (number, True)
    np.testing.assert_array_equal(
        spread_positions(2, (0, 1), (0.1, 0.9), 2), np.float32([0.1, 0.9])
    )


@pytest.mark.parametrize(
    ("count", "positions", "expected"),
    [
        (3, (0.5,), [0.5, 0.5, 0.5]),
        (4, (0.75, 0.25), [0.25, 0.25, 0.75, 0.75]),
        (3, (0.25, 0.75), [0.25, 0.25, 0.75]),
        (2, (0.75, 0.25), [0.25, 0.75]),
        (2, (0.0, 1.0), [0, 1]),
    ],
)
def test_positions_are_taken_in_turn(count, positions, expected):
    np.testing.assert_array_equal(spread_positions(count, (0, 1), positions), expected)


@pytest.mark.parametrize("position", [-0.1, 1.5, np.nan, np.inf, -np.inf])
def test_position_outside_the_range_raises(position):
    with pytest.raises(InputError) as error:
        spread_positions(2, (0.0, 1.0), (0.5, position))
    assert "`position`" in str(error.value)
    assert f"Received: position={position:g}" in str(error.value)


def test_position_outside_the_trained_range_raises():
    with pytest.raises(InputError, match="0.25 .* 0.75 .* Received: position=0.2"):
        spread_positions(2, (0.25, 0.75), (0.2,))


@pytest.mark.parametrize("count", [0, -3])
def test_count_must_be_positive(count):
    with pytest.raises(InputError, match=f"Received: count={count}"):
        spread_positions(count, (0, 1))


def test_every_position_has_a_sample():
    with pytest.raises(InputError, match="at least 3.* Received: count=2"):
        spread_positions(2, (0, 1), (0.1, 0.5, 0.9))


# Files


def test_folder_holds_the_samples(write):
    out, metrics = write(count=6)
    assert {path.name for path in out.iterdir()} == set(FILES[:4])
    with np.load(out / "codes.npz") as file:
        codes, positions, log_prob = (file[key] for key in ("codes", "positions", "log_prob"))
    for name, array in (("codes", codes), ("log_prob", log_prob)):
        np.testing.assert_array_equal(array, np.concatenate([batch[name] for batch in grids(6)]))
    np.testing.assert_array_equal(positions, spread_positions(6, (0, 1)))
    assert codes.dtype == np.uint16
    assert metrics == json.loads((out / "metrics.json").read_text())
    expected = {"samples": 6, **METADATA, "nats_per_code_samples": pytest.approx(-log_prob.mean())}
    assert metrics == expected


def test_images_are_the_decoded_codes_named_by_index_and_position(write):
    out, _ = write(count=6)
    names = sorted(path.name for path in (out / "slices").iterdir())
    positions = ("0.000", "0.200", "0.400", "0.600", "0.800", "1.000")
    assert names == [f"sample_{k:04d}_position_{text}.png" for k, text in enumerate(positions)]
    codes = np.concatenate([batch["codes"] for batch in grids(6)])
    for name, image in zip(names, decode(codes), strict=True):
        np.testing.assert_array_equal(read(out / "slices" / name), np.rint(255 * image[..., 0]))


def test_contact_sheet_is_an_image_of_the_crops(write):
    out, _ = write(count=6)
    with Image.open(out / "contact_sheet.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert np.asarray(image.convert("L")).std() > 20


def test_contact_sheet_shows_the_written_images_cut_to_the_crop(write, sheet):
    out, _ = write(count=6)
    images = np.stack([read(path) for path in sorted((out / "slices").iterdir())])
    np.testing.assert_allclose(sheet["images"], CROP.cut(images) / 255, atol=1e-6)
    assert sheet["labels"][:2] == ["position 0.00", "position 0.20"]
    assert sheet["nearest"] is None


@pytest.mark.parametrize("evaluate", [False, True])
def test_contact_sheet_of_many_covers_all_positions(
    write, sheet, monkeypatch, phantom_archive, evaluate
):
    """Positions rise: the first samples would all be from the lowest positions."""
    monkeypatch.setattr(generate, "MAX_SHOWN", 5)
    scores = {"nearest": (np.arange(12), np.linspace(0, 1, 12)), "frechet_distance": 1.0}
    monkeypatch.setattr(generate, "evaluate_samples", lambda *_, **__: scores)
    monkeypatch.setattr(generate, "check_comparable", lambda *_: None)
    out, _ = write(count=12, evaluate=evaluate, archive=phantom_archive)
    assert len(list((out / "slices").iterdir())) == 12
    assert sheet["labels"] == [f"position {k / 11:.2f}" for k in (0, 3, 6, 8, 11)]
    chosen = [read(path) for path in sorted((out / "slices").iterdir())]
    chosen = np.stack([chosen[k] for k in (0, 3, 6, 8, 11)])
    np.testing.assert_allclose(sheet["images"], CROP.cut(chosen) / 255, atol=1e-6)


# Beside real slices


def of_archive(archive, split, count):
    """Row numbers of an archive as codes, with a decoder that returns the archive's images."""
    rows = archive.indices(split)[:count]
    images = archive.load(rows)
    codes = [{"codes": rows[:, None, None], "log_prob": np.zeros((count, 1, 1), "float32")}]
    return {"codes": codes, "decode": lambda codes: images, "archive": archive}, rows


def test_samples_that_cannot_be_compared_are_not_sampled(write, phantom_archive, tmp_path):
    def codes():
        raise AssertionError("sampled before the check")
        yield

    for count in (1, 5):  # too few, and no two at one position
        with pytest.raises(InputError, match=f"Received: {count}"):
            write(count=count, codes=codes(), archive=phantom_archive, evaluate=True)
    with pytest.raises(InputError, match="`archive` .* Received: None"):
        write(codes=codes(), nearest=True)
    assert not any(tmp_path.iterdir())


def test_nearest_of_a_training_slice_is_itself(write, sheet, phantom_archive):
    options, rows = of_archive(phantom_archive, "train", 4)
    out, metrics = write(count=4, nearest=True, crop=phantom_archive.crop, **options)
    for row, image, (neighbour, label) in zip(rows, sheet["images"], sheet["nearest"], strict=True):
        assert label == f"{phantom_archive.index[row].slice_id}\nSSIM 1.000"
        np.testing.assert_allclose(neighbour, image, atol=1e-6)
    assert "nearest_train_ssim" not in metrics
    assert {path.name for path in out.iterdir()} == set(FILES) - {"report.html"}
    table = [*read_rows(out / "nearest.csv").values()]
    names = [path.name for path in sorted((out / "slices").iterdir())]
    assert [line["sample"] for line in table] == names
    assert [line["slice_id"] for line in table] == [phantom_archive.index[r].slice_id for r in rows]
    assert [float(line["ssim"]) for line in table] == pytest.approx([1] * 4)
    for row, name in zip(rows, names, strict=True):
        np.testing.assert_array_equal(read(out / "nearest" / name), phantom_archive.images[row])


def test_several_values_are_evaluated_and_shown_beside_their_nearest_slices(
    write, sheet, phantom_archive, monkeypatch
):
    """The sheet's slices alone have neighbours."""
    monkeypatch.setattr(generate, "known_values", lambda *_: {})
    monkeypatch.setattr(generate, "condition_slopes", lambda images, *_: {"samples": len(images)})
    monkeypatch.setattr(generate, "MAX_SHOWN", 4)
    options, _ = of_archive(phantom_archive, "train", 8)
    options |= {"groups": ("age 45", "age 60"), "crop": phantom_archive.crop, "evaluate": True}
    out, metrics = write(count=8, name="both", nearest=True, **options)
    assert metrics["condition_slopes"] == {"age": {"samples": 8}}
    assert len(read_rows(out / "nearest.csv")) == len(sheet["nearest"]) == 4
    assert all(label.endswith("SSIM 1.000") for _, label in sheet["nearest"])
    out, _ = write(count=8, name="evaluated", **options)
    assert not (out / "nearest.csv").exists()


def test_nearest_sheet_is_wider_than_the_plain_one(write, phantom_archive):
    options, _ = of_archive(phantom_archive, "test", 3)
    options["crop"] = phantom_archive.crop
    plain, _ = write(count=3, name="plain", **options)
    beside, _ = write(count=3, name="beside", nearest=True, **options)
    sizes = []
    for out in (plain, beside):
        with Image.open(out / "contact_sheet.png") as image:
            sizes.append(np.prod(image.size))
    assert sizes[1] > sizes[0]


def test_evaluation_reports_every_score_with_its_baseline(write, phantom_archive):
    options, rows = of_archive(phantom_archive, "test", 8)
    positions = np.float32([phantom_archive.index[row].position for row in rows])
    # Each twice, so that two samples share each position.
    options |= {"codes": options["codes"] * 2, "positions": np.tile(positions, 2)}
    out, metrics = write(count=16, evaluate=True, crop=phantom_archive.crop, **options)
    scores = {name for name in metrics if not name.startswith(("nats", *METADATA))} - {"samples"}
    means = {name + end for name in generate.MEASURES for end in ("", "_real")}
    assert scores == {name + end for name in means for end in ("", "_low", "_high")}
    assert all(np.isfinite(metrics[name]) for name in means)
    written = json.loads((out / "metrics.json").read_text())
    # Of a single test subject no interval is known: NaN.
    assert written == {key: None if value != value else value for key, value in metrics.items()}
    # The sheet shows no nearest slices here, but every sample's is known.
    assert len(read_rows(out / "nearest.csv")) == len([*(out / "nearest").iterdir()]) == 16
    # The samples are the test slices: no distance to these, and each pair is one slice twice.
    assert metrics["pairwise_ms_ssim"] == pytest.approx(1)
    assert metrics["nearest_train_ssim"] == pytest.approx(metrics["nearest_train_ssim_real"])
    for name in ("frechet_distance", "foreground_area_difference", "intensity_quantile_difference"):
        assert metrics[name] == pytest.approx(0, abs=1e-5)
        assert metrics[f"{name}_real"] > 1e-5


def test_original_is_shown_beside_each_inpainted_image(write, sheet):
    original = np.random.default_rng(0).random((64, 64), "float32")
    write(count=3, original=original)
    assert [label for _, label in sheet["nearest"]] == ["original"] * 3
    np.testing.assert_array_equal(sheet["nearest"][0][0], CROP.cut(original[None])[0])


# Replacing and failing


def test_same_samples_are_the_same_bytes(write):
    first, second = write(name="first")[0], write(name="second")[0]
    first, second = contents(first), contents(second)
    assert first.keys() == second.keys()
    for name in first.keys() - {"codes.npz"}:  # its zip holds the time
        assert first[name] == second[name], name


def test_earlier_sampling_is_replaced(write, tmp_path):
    write(count=6)
    out, _ = write(count=2)
    assert len(list((out / "slices").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_empty_folder_is_filled_and_parents_are_created(write, tmp_path):
    (tmp_path / "out").mkdir()
    assert write()[0].is_dir()
    assert write(name="a/b/c")[0].is_dir()


@pytest.mark.parametrize(
    "files", [("chapter.txt",), ("metrics.json", "chapter.txt"), ("slices/a",)]
)
def test_folder_with_unexpected_files_raises_and_is_not_changed(write, tmp_path, files):
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="out holds .*: "):
        write(codes=iter(()))  # nothing is sampled before the check
    assert contents(tmp_path) == before


def test_file_as_output_raises(write, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file"):
        write()
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), ValueError()])
def test_failure_leaves_no_partial_folder_and_keeps_the_earlier_sampling(write, tmp_path, error):
    def broken():
        yield next(grids(6))
        raise error

    with pytest.raises(type(error)):
        write(name="new/folder", codes=broken())
    assert not any(tmp_path.iterdir())
    before = contents(write()[0])
    with pytest.raises(type(error)):
        write(codes=broken())
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Summary


def test_summary_is_one_line_or_a_table():
    metrics = {"samples": 5, "temperature": 0.9, "nats_per_code_samples": 2.5}
    assert summary(metrics) == "5 samples at temperature 0.9, 2.500 nats per code"
    for number, name in enumerate(generate.MEASURES):
        for end, value in (("", number / 10), ("_real", number / 20)):
            metrics |= named_interval(name + end, (value, value - 1, value + 1))
    line, head, *rows = summary(metrics).splitlines()
    assert line.startswith("5 samples")
    assert head.split() == ["samples", "real"]
    assert [row.split()[-6::3] for row in rows] == [
        [f"{number / 10:.4f}", f"{number / 20:.4f}"] for number in range(len(generate.MEASURES))
    ]
    assert rows[-1].endswith("0.6000 [-0.4000, 1.6000]  0.3000 [-0.7000, 1.3000]")
    assert len({len(row) for row in (head, *rows)}) == 1
    inpainted = {"samples": 2, "temperature": 1.0, "completed": "a.png", "position": 0.25}
    assert "a.png, position 0.25, at temperature 1" in summary(inpainted)


def test_crop_is_that_of_the_phantoms(phantom_archive):
    assert dataclasses.astuple(phantom_archive.crop) == dataclasses.astuple(CROP)
