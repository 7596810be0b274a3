"""Figures: what they choose to show, and that they are written whole for all they may get."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from brainslices.errors import InputError
from brainslices.visualization.contact_sheets import contact_sheet
from brainslices.visualization.figures import (
    ReconstructionRow,
    pick_extremes,
    reconstruction_figure,
    training_figure,
)


def row(label="best", shape=(44, 52)):
    generator = np.random.default_rng(0)
    original = generator.random(shape)
    return ReconstructionRow(
        label=label,
        slice_id="case_001_slice_3",
        original=original,
        codes=generator.integers(0, 512, (shape[0] // 4, shape[1] // 4), dtype="int32"),
        reconstruction=original / 2,
        similarity=np.ones(shape),
        ssim=0.95,
        ssim_foreground=0.87,
    )


def history(epochs):
    epoch = np.arange(1, epochs + 1)
    return {
        "reconstruction_loss": list(1 / epoch),
        "val_reconstruction_loss": list(1.1 / epoch),
        "val_ssim": list(1 - 0.3 / epoch),
        "val_ssim_foreground": list(1 - 0.6 / epoch),
        "perplexity": list(400 - 300 / epoch),
        "codebook_usage": list(1 - 0.5 / epoch),
        "learning_rate": list(1e-3 / epoch),
    }


def drawn(path):
    """The picture as an array; fails if it is no whole PNG or all white."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 100
    return pixels


def test_extremes_are_the_best_the_median_and_the_worst():
    scores = np.random.default_rng(0).permutation(np.arange(100) / 100)
    picked = pick_extremes(scores)
    assert [label for label, _ in picked] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert [scores[k] for _, k in picked] == [0.99, 0.98, 0.50, 0.49, 0.01, 0.0]


@pytest.mark.parametrize("slices", range(9))
def test_extremes_of_few_slices_show_none_twice(slices):
    picked = pick_extremes(np.arange(slices) / 10)
    rows = [k for _, k in picked]
    assert rows == sorted(set(rows), reverse=True)
    assert len(rows) == (min(slices, 3) if slices < 6 else 6)
    if slices:
        assert picked[0] == ("best", slices - 1)
    if slices > 1:
        assert picked[-1] == ("worst", 0)


def test_extremes_pass_over_slices_without_a_score():
    picked = pick_extremes(np.array([np.nan, 0.2, np.nan, 0.9, 0.5]))
    assert picked == [("best", 3), ("median", 4), ("worst", 1)]
    assert pick_extremes(np.array([np.nan])) == []


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_reconstruction_figure_grows_with_its_rows(tmp_path, rows):
    path = tmp_path / "figures" / "reconstructions.png"
    reconstruction_figure(path, [row()] * rows)
    height, width = drawn(path).shape
    assert 900 < width < 1400
    assert 150 * rows < height < 320 * rows + 100
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(64, 40), (256, 256)])
def test_reconstruction_figure_takes_any_picture_shape(tmp_path, shape):
    reconstruction_figure(tmp_path / "figure.png", [row(shape=shape)])
    drawn(tmp_path / "figure.png")


def test_reconstruction_figure_shows_a_change(tmp_path):
    reconstruction_figure(tmp_path / "one.png", [row("best")])
    reconstruction_figure(tmp_path / "same.png", [row("best")])
    reconstruction_figure(tmp_path / "other.png", [row("worst")])
    one, same, other = (drawn(tmp_path / f"{name}.png") for name in ("one", "same", "other"))
    np.testing.assert_array_equal(one, same)
    assert one.shape != other.shape or (one != other).any()


def test_reconstruction_figure_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one slice to draw. Received: none"):
        reconstruction_figure(tmp_path / "figure.png", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_training_figure_of_any_length(tmp_path, epochs):
    training_figure(tmp_path / "figure.png", history(epochs))
    drawn(tmp_path / "figure.png")


@pytest.mark.parametrize("missing", [*history(1), "all but the loss"])
def test_training_figure_with_missing_columns(tmp_path, missing):
    columns = history(5)
    columns.pop(missing, None)
    if missing == "all but the loss":
        columns = {"reconstruction_loss": columns["reconstruction_loss"]}
    training_figure(tmp_path / "figure.png", columns)
    drawn(tmp_path / "figure.png")


def test_training_figure_with_epochs_without_a_value(tmp_path):
    columns = history(4)
    columns["val_ssim"] = [0.5, np.nan, 0.7, np.nan]
    columns["val_reconstruction_loss"] = [np.nan] * 4
    columns["perplexity"] = []
    training_figure(tmp_path / "figure.png", columns)
    drawn(tmp_path / "figure.png")


def test_training_figure_without_known_columns_is_refused(tmp_path):
    with pytest.raises(InputError, match="reconstruction_loss.*Received: epoch, speed"):
        training_figure(tmp_path / "figure.png", {"epoch": [1], "speed": [2.0]})
    assert not list(tmp_path.iterdir())


def sheet_pictures(count, shape=(52, 60)):
    return np.random.default_rng(0).random((count, *shape), "float32")


@pytest.mark.parametrize("count", [1, 16, 100, 300])
@pytest.mark.parametrize("paired", [False, True])
def test_contact_sheet_of_any_number(tmp_path, count, paired):
    images = sheet_pictures(count)
    labels = [f"position {k / count:.2f}" for k in range(count)]
    nearest = [(image, "nearest, SSIM 0.871\ncase_001_slice_3") for image in images]
    path = tmp_path / "figures" / "samples.png"
    contact_sheet(path, images, labels, nearest if paired else None)
    height, width = drawn(path).shape
    assert 380 < width < 3200
    assert 380 < height < 3600
    assert list(path.parent.iterdir()) == [path]


def test_contact_sheet_shows_each_picture_in_its_place(tmp_path):
    shades = np.linspace(0.3, 1, 6, dtype="float32")
    images = np.ones((6, 50, 50), "float32") * shades[:, None, None]
    nearest = [(1 - image, "near") for image in images]
    contact_sheet(tmp_path / "sheet.png", images, ["slice"] * 6, nearest, columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L")) / 255
    middles = (
        (np.arange(2) + 0.45) * pixels.shape[0] / 2,
        (np.arange(6) + 0.5) * pixels.shape[1] / 6,
    )
    found = pixels[np.ix_(*(middle.astype(int) for middle in middles))]
    np.testing.assert_allclose(found[:, ::2].ravel(), shades, atol=3e-3)
    np.testing.assert_allclose(found[:, 1::2].ravel(), 1 - shades, atol=3e-3)


def test_contact_sheet_refuses_what_does_not_fit(tmp_path):
    images, path = sheet_pictures(2), tmp_path / "sheet.png"
    with pytest.raises(InputError, match="at least one picture.*0 pictures, 0 labels"):
        contact_sheet(path, images[:0], [])
    with pytest.raises(InputError, match="2 pictures, 1 labels, no nearest"):
        contact_sheet(path, images, ["one"])
    with pytest.raises(InputError, match="2 pictures, 2 labels, 1 nearest"):
        contact_sheet(path, images, ["one", "two"], [(images[0], "near")])
    with pytest.raises(InputError, match="columns=0"):
        contact_sheet(path, images, ["one", "two"], columns=0)
    with pytest.raises(InputError, match=r"one shape. Received: \[\(10, 10\), \(52, 60\)\]"):
        contact_sheet(path, images, ["a", "b"], [(np.zeros((10, 10), "float32"), "near")] * 2)
    assert not list(tmp_path.iterdir())


def test_failed_contact_sheet_keeps_the_former_one(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"former")

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        contact_sheet(path, sheet_pictures(1), ["one"])
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_leave_the_users_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    training_figure(tmp_path / "figure.png", history(3))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("failing", ["reconstruction", "training"])
def test_failed_drawing_keeps_the_former_figure(tmp_path, monkeypatch, failing):
    path = tmp_path / "figure.png"
    path.write_bytes(b"former")

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        if failing == "training":
            training_figure(path, history(3))
        else:
            reconstruction_figure(path, [row()])
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]
