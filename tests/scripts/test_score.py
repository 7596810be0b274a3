"""The command `score` end to end on phantoms."""

import numpy as np
import pytest
from helpers import ROOT, csv_rows, error_line, no_new_files, run_command, save_image
from PIL import Image

from brainslices.evaluation.lesions import Lesion
from brainslices.runs.json_files import read_json, write_json
from pixelcnn import SlicePrior, lesion_scores
from pixelcnn.prediction import ERROR_SCALE, FLOOR
from pixelcnn.score import FILES

COMMAND = ROOT / "scripts" / "score.py"

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.fixture(scope="module")
def scored(trained_prior, phantom_archive, tmp_path_factory):
    """The test split, in batches that do not divide it."""
    out = tmp_path_factory.mktemp("out") / "scores"
    arguments = (
        "--batch-size",
        3,
        "--predict",
        "--restore",
        2,
        "--lesions",
        "--report",
        "--out",
        out,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesion_scores, "LESIONS", [Lesion("bright", 12, 0.3)])
        data = ("--data", phantom_archive.path)
        assert run_command(COMMAND, "--run", trained_prior, *data, *arguments) == 0
    return out


@pytest.mark.slow
def test_bits_are_those_of_the_slice_prior(scored, trained_prior, phantom_archive):
    rows, indices = csv_rows(scored / "slices.csv"), phantom_archive.indices("test")
    records = [phantom_archive.index[row] for row in indices]
    assert [row["slice_id"] for row in rows] == [record.slice_id for record in records]
    prior = SlicePrior.from_run(trained_prior)
    positions = [record.position for record in records]
    nats = -prior.log_prob(phantom_archive.load(indices), positions)
    bits = np.array([float(row["bits"]) for row in rows])
    np.testing.assert_allclose(bits, nats / np.log(2), rtol=1e-4)
    metrics = read_json(scored / "metrics.json")
    assert metrics["bits_per_slice"] == pytest.approx(bits.mean())
    assert metrics["nats_per_code"] == pytest.approx(nats.mean() / np.prod(prior.model.grid_shape))
    assert (metrics["slices"], metrics["subjects"], metrics["split"]) == (8, 1, "test")


@pytest.mark.slow
def test_maps_peak_at_the_most_surprising_place(scored):
    assert {path.name for path in scored.iterdir()} == set(FILES)
    assert '<section id="surprise">' in (scored / "report.html").read_text()
    maps = np.load(scored / "surprise_maps.npy")
    assert (maps.shape, maps.dtype) == ((8, 64, 64), np.float16)
    for row, pixels in zip(csv_rows(scored / "slices.csv"), maps, strict=True):
        place = int(row["row"]), int(row["col"])
        highest = float(pixels.max())
        assert pixels[place] > highest - 0.25 * (highest - float(pixels.min()))
        assert highest <= float(row["most_surprise"]) + 0.01
        assert 0 <= float(row["percentile"]) <= 100
    for name, highest in (("restoration", 1), ("prediction", 1 / FLOOR + 1 / ERROR_SCALE)):
        maps = np.load(scored / f"{name}_maps.npy")
        assert (maps.shape, maps.dtype) == ((8, 64, 64), np.float16)
        assert 0 < maps.max() <= highest
    with Image.open(scored / "surprise.png") as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_lesions_are_measured_for_every_map(scored):
    rows = csv_rows(scored / "lesions.csv")
    maps = ["surprise", "restoration", "prediction", "reconstruction error", "intensity"]
    assert [row["map"] for row in rows] == maps
    stored = read_json(scored / "metrics.json")["lesions"]
    for row, values in zip(rows, stored, strict=True):
        assert row == {name: str(value) for name, value in values.items()}
        assert 0 <= values["average_precision"] <= 1


@pytest.mark.slow
def test_a_folder_of_images_is_scored_and_an_earlier_scoring_replaced(
    scored, trained_prior, phantom_archive, tmp_path, capsys, caplog
):
    lines = ["file,subject,position"]
    for number, row in enumerate(phantom_archive.indices("test")):
        name = f"case_007_slice_{number}.png"
        save_image(tmp_path / "png" / name, phantom_archive.images[row])
        lines.append(f"{name},a,{phantom_archive.index[row].position}")
    table, out = tmp_path / "table.csv", tmp_path / "out"
    table.write_text("\n".join(lines))
    data = ("--data", tmp_path / "png")
    assert run_command(COMMAND, "--run", trained_prior, *data, "--out", out) == 0
    assert "8 images of " in caplog.text
    assert "have no slice position" in caplog.text
    caplog.clear()
    estimated = {float(row["position"]) for row in csv_rows(out / "slices.csv")}
    trained = {phantom_archive.index[row].position for row in phantom_archive.indices("train")}
    assert estimated <= {float(np.float32(position)) for position in trained}
    assert run_command(COMMAND, "--run", trained_prior, *data, "--table", table, "--out", out) == 0
    assert not (out / "restoration_maps.npy").exists()
    assert "all images" in capsys.readouterr().out
    assert "have no slice position" not in caplog.text
    bits = [
        [float(row["bits"]) for row in csv_rows(folder / "slices.csv")] for folder in (out, scored)
    ]
    np.testing.assert_allclose(*bits, rtol=1e-4)


@pytest.fixture
def error_of(trained_prior, phantom_archive, tmp_path):
    """Run a command that must fail without writing; return its one-line message."""

    def run(*arguments, run=trained_prior, data=phantom_archive.path, out=tmp_path / "out"):
        with no_new_files(tmp_path):
            return error_line(COMMAND, "--run", run, "--data", data, "--out", out, *arguments)

    return run


@pytest.mark.slow
def test_another_vqvae_is_an_error(error_of, trained_vqvae, linked, tmp_path):
    prior, vqvae = linked
    grids = dict(np.load(vqvae.code_grids_path))
    np.savez(tmp_path / "other.npz", **{**grids, "vqvae_hash": np.array("0" * 64)})
    assert "000000000000" in error_of("--codes", tmp_path / "other.npz")
    vqvae.code_grids_path.unlink()
    assert "encode_codes.py" in error_of(run=prior.path)
    config = read_json(prior.config_path)
    write_json(prior.config_path, {**config, "vqvae_hash": "0" * 64})
    assert "000000000000" in error_of(run=prior.path)
    assert "'vqvae'" in error_of(run=trained_vqvae)


@pytest.mark.slow
def test_unusable_data_and_folders_are_errors(error_of, tmp_path, tmp_path_factory):
    assert "absent" in error_of(data=tmp_path / "absent")
    assert "split='third'" in error_of("--split", "third")
    wide = tmp_path_factory.mktemp("wide")
    save_image(wide / "wide.png", np.zeros((48, 56), "uint8"))
    assert "48 x 56" in error_of(data=wide)
    thesis = tmp_path_factory.mktemp("thesis")
    (thesis / "chapter.txt").write_text("words")
    assert "chapter.txt" in error_of(out=thesis)
    assert (thesis / "chapter.txt").read_text() == "words"
    assert "config.json" in error_of(run=thesis)


@pytest.mark.parametrize("flag", [("--batch-size", 0), ("--restore", -1), ("--seed", -1)])
def test_the_parser_rejects_values_out_of_range(tmp_path, flag):
    words = ("--run", tmp_path, "--data", tmp_path, "--out", tmp_path / "out", *flag)
    assert run_command(COMMAND, *words) == 2
