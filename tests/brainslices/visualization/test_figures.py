"""Figures: which slices they show, and that every input gives a complete PNG."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from brainslices.errors import InputError
from brainslices.visualization import figures
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


def read_figure(path):
    """The figure as an array; fails if it is no complete PNG or all white."""
    with Image.open(path) as figure:
        assert figure.format == "PNG"
        pixels = np.asarray(figure.convert("L"))
    assert pixels.min() < 100
    return pixels


def test_extremes_are_the_best_the_median_and_the_worst():
    scores = np.random.default_rng(0).permutation(np.arange(100) / 100)
    picked = pick_extremes(scores)
    assert [label for label, _ in picked] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert [scores[k] for _, k in picked] == [0.99, 0.98, 0.50, 0.49, 0.01, 0.0]


@pytest.mark.parametrize("slices", range(9))
def test_extremes_of_few_slices_repeat_none(slices):
    picked = pick_extremes(np.arange(slices) / 10)
    rows = [k for _, k in picked]
    assert rows == sorted(set(rows), reverse=True)
    assert len(rows) == (min(slices, 3) if slices < 6 else 6)
    if slices:
        assert picked[0] == ("best", slices - 1)
    if slices > 1:
        assert picked[-1] == ("worst", 0)


def test_extremes_skip_slices_without_a_score():
    picked = pick_extremes(np.array([np.nan, 0.2, np.nan, 0.9, 0.5]))
    assert picked == [("best", 3), ("median", 4), ("worst", 1)]
    assert pick_extremes(np.array([np.nan])) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_reconstruction_figure_grows_with_its_rows(tmp_path, rows):
    path = tmp_path / "figures" / "reconstructions.png"
    reconstruction_figure(path, [row()] * rows)
    height, width = read_figure(path).shape
    assert 900 < width < 1400
    assert 150 * rows < height < 320 * rows + 100
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(64, 40), (256, 256)])
def test_reconstruction_figure_takes_any_image_shape(tmp_path, shape):
    reconstruction_figure(tmp_path / "figure.png", [row(shape=shape)])
    read_figure(tmp_path / "figure.png")


def test_reconstruction_figure_depends_on_its_rows_alone(tmp_path):
    for name, label in (("one", "best"), ("same", "best"), ("other", "worst")):
        reconstruction_figure(tmp_path / f"{name}.png", [row(label, (20, 24))])
    one, same, other = (read_figure(tmp_path / f"{name}.png") for name in ("one", "same", "other"))
    np.testing.assert_array_equal(one, same)
    assert one.shape != other.shape or (one != other).any()


def test_reconstruction_figure_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="`rows`.*Received: none"):
        reconstruction_figure(tmp_path / "figure.png", [])
    assert not list(tmp_path.iterdir())


def test_training_figure_draws_all_columns(tmp_path, monkeypatch):
    save, drawn = figures.save_figure, []
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    training_figure(tmp_path / "figure.png", history(40))
    read_figure(tmp_path / "figure.png")
    lines = [line.get_ydata() for panel in drawn[0].axes for line in panel.lines]
    for _, names, _ in figures.PANELS.values():
        for name in set(names) & set(history(40)):
            assert any(np.array_equal(line, history(40)[name]) for line in lines), name


def test_training_figure_of_one_epoch(tmp_path):
    columns = {name: history(1)[name] for name in ("reconstruction_loss", "codebook_usage")}
    training_figure(tmp_path / "figure.png", columns)
    read_figure(tmp_path / "figure.png")


@pytest.mark.parametrize(
    "names", [["reconstruction_loss"], ["val_ssim_foreground", "perplexity"], ["learning_rate"]]
)
def test_training_figure_with_few_columns(tmp_path, names):
    columns = {name: history(5)[name] for name in names}
    training_figure(tmp_path / "figure.png", columns)
    read_figure(tmp_path / "figure.png")


def test_training_figure_with_epochs_without_a_value(tmp_path):
    columns = {
        "val_ssim": [0.5, np.nan, 0.7, np.nan],
        "reconstruction_loss": [4, 3, 2, 1],
        "val_reconstruction_loss": [np.nan] * 4,
        "perplexity": [],
    }
    training_figure(tmp_path / "figure.png", columns)
    read_figure(tmp_path / "figure.png")


def test_training_figure_without_known_columns_is_refused(tmp_path):
    with pytest.raises(InputError, match="`history`.*Received: epoch, speed"):
        training_figure(tmp_path / "figure.png", {"epoch": [1], "speed": [2.0]})
    assert not list(tmp_path.iterdir())


def sheet_images(count, shape=(52, 60)):
    return np.random.default_rng(0).random((count, *shape), "float32")


@pytest.mark.parametrize(
    ("count", "paired"),
    [
        (1, False),
        (1, True),
        (6, True),
        (20, False),
        pytest.param(300, True, marks=pytest.mark.slow),
    ],
)
def test_contact_sheet_of_any_number(tmp_path, count, paired):
    images = sheet_images(count)
    labels = [f"position {k / count:.2f}" for k in range(count)]
    nearest = [(image, "nearest, SSIM 0.871\ncase_001_slice_3") for image in images]
    path = tmp_path / "figures" / "samples.png"
    contact_sheet(path, images, labels, nearest if paired else None)
    height, width = read_figure(path).shape
    assert 380 < width < 3200
    assert 380 < height < 3600
    assert list(path.parent.iterdir()) == [path]


def test_contact_sheet_draws_each_image_in_its_cell(tmp_path):
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
    levels = pixels[np.ix_(*(middle.astype(int) for middle in middles))]
    np.testing.assert_allclose(levels[:, ::2].ravel(), shades, atol=5e-3)
    np.testing.assert_allclose(levels[:, 1::2].ravel(), 1 - shades, atol=5e-3)


def test_contact_sheet_labels_stay_below_their_image(tmp_path):
    images = np.ones((2, 50, 50), "float32")
    contact_sheet(
        tmp_path / "sheet.png", images, ["a label far too long for its image " * 3, "short"]
    )
    pixels = read_figure(tmp_path / "sheet.png")
    # Of the two cells' labels the first must not reach into the second.
    middle = pixels[-40:, pixels.shape[1] // 2 - 4 : pixels.shape[1] // 2 + 4]
    assert middle.max() == middle.min()


def test_contact_sheet_checks_its_arguments(tmp_path):
    images, path = sheet_images(2), tmp_path / "sheet.png"
    with pytest.raises(InputError, match="`images`.*0 images, 0 labels"):
        contact_sheet(path, images[:0], [])
    with pytest.raises(InputError, match="2 images, 1 labels, no nearest"):
        contact_sheet(path, images, ["one"])
    with pytest.raises(InputError, match="2 images, 2 labels, 1 nearest"):
        contact_sheet(path, images, ["one", "two"], [(images[0], "near")])
    with pytest.raises(InputError, match="columns=0"):
        contact_sheet(path, images, ["one", "two"], columns=0)
    with pytest.raises(InputError, match=r"`nearest`.*\[\(10, 10\), \(52, 60\)\]"):
        contact_sheet(path, images, ["a", "b"], [(np.zeros((10, 10), "float32"), "near")] * 2)
    assert not list(tmp_path.iterdir())


def test_figures_do_not_change_the_users_matplotlib_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    training_figure(tmp_path / "figure.png", {"val_ssim": [0.5]})
    contact_sheet(tmp_path / "sheet.png", sheet_images(1), ["one"])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: training_figure(path, {"val_ssim": [0.5]}),
        lambda path: reconstruction_figure(path, [row()]),
        lambda path: contact_sheet(path, sheet_images(1), ["one"]),
    ],
)
def test_failed_drawing_keeps_the_earlier_figure(tmp_path, monkeypatch, draw):
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")

    def full_disk(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
