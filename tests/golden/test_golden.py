"""Files of an earlier release must load, answer and resume as they did (tests/golden/README.md)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import csv_rows

from brainslices.config import from_dict
from brainslices.data.archive import SliceArchive
from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run

GOLDEN = Path(__file__).parent
SEED, POSITIONS = 0, np.array([0.25, 0.75])

pytestmark = pytest.mark.usefixtures("fresh_keras")


def model_outputs():
    """Name -> array: what the golden models compute, from images to samples."""
    from pixelcnn import PixelCNN, Sampler
    from pixelcnn.provenance import load_provenance
    from vqvae.model import VQVAE

    prior = Run(GOLDEN / "pixelcnn_run")
    provenance = load_provenance(prior, GOLDEN / "vqvae_run")
    model, vqvae = PixelCNN.from_run(prior), VQVAE.from_run(provenance.run)
    rows, cols = vqvae.image_shape
    waves = np.sin(np.arange(rows))[:, None] * np.cos(np.arange(cols) / 3)
    images = np.stack([(1 + waves) / 2, waves**2])[..., None]
    codes = vqvae.encode_to_codes(images.astype("float32"))
    (sampled,) = Sampler(model).batches(POSITIONS, SEED, batch_size=2)
    return {
        "codes": np.asarray(codes),
        "reconstruction": np.asarray(vqvae.decode_codes(codes))[:, ::6, ::5, 0],
        "log_prob": np.asarray(model.log_prob(codes, POSITIONS.astype("float32"))),
        "drawn_codes": np.asarray(sampled["codes"]),
    }


def test_golden_runs_compute_what_they_did():
    expected, outputs = read_json(GOLDEN / "answers.json"), model_outputs()
    assert list(outputs) == list(expected)
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)


@pytest.fixture
def interrupted(tmp_path):
    """A copy of the interrupted runs and of their archive."""
    return Path(shutil.copytree(GOLDEN / "interrupted", tmp_path / "interrupted"))


def configs(run, model_type, training_type):
    """The two dataclasses of a run's `config.json`."""
    values = read_json(run / "config.json")
    model = from_dict(model_type, values["model"], run)
    return model, from_dict(training_type, values["training"], run)


def numbers(values, prefix=""):
    """The numbers of a JSON object and of those inside it, by path."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{name}.")
        elif not isinstance(value, str):
            flat[prefix + name] = value
    return flat


def check_finished(run, expected):
    """The last epoch and the metrics are those of the release that wrote the run."""
    last_epoch = csv_rows(run / "history.csv")[-1]
    history = {name: float(value) for name, value in last_epoch.items()}
    assert history == pytest.approx(expected["history"], rel=1e-5, abs=1e-6)
    metrics, written = numbers(read_json(run / "metrics.json")), numbers(expected["metrics"])
    assert metrics["seconds"] > 0
    written.pop("entropy_by_position", None)  # later versions measure the cost of other slices
    kept = {name: metrics[name] for name in written}
    assert kept == pytest.approx(written, rel=1e-5, abs=1e-6)


def test_archive_of_an_earlier_release_opens():
    archive = SliceArchive.open(GOLDEN / "interrupted" / "archive")
    counts = {name: split["slices"] for name, split in archive.counts.items()}
    assert counts == {"train": 6, "validate": 2, "test": 2}
    assert archive.load(archive.indices("test")).shape == (2, 32, 32, 1)


@pytest.mark.slow
def test_interrupted_vqvae_resumes_to_the_same_scores(interrupted):
    """Stopped after the first step of epoch 2."""
    from vqvae.config import VQVAEConfig, VQVAETraining
    from vqvae.encode import load_or_encode
    from vqvae.model import VQVAE
    from vqvae.training import train

    run, archive = interrupted / "vqvae_run", SliceArchive.open(interrupted / "archive")
    images = archive.load(archive.indices("train"))
    grids = load_or_encode(run)  # of the model of epoch 1, read from the file
    codes = VQVAE.from_run(run).encode_to_codes(images)
    np.testing.assert_array_equal(grids.splits["train"].codes, codes)

    train(archive.path, run, *configs(run, VQVAEConfig, VQVAETraining))
    check_finished(run, read_json(interrupted / "expected.json")["vqvae_run"])
    reconstructed = VQVAE.from_run(run).reconstruct(images)
    assert reconstructed.shape == images.shape


@pytest.mark.slow
def test_interrupted_prior_resumes_to_the_same_scores(interrupted):
    """Stopped between epochs 1 and 2."""
    from pixelcnn import PixelCNN
    from pixelcnn.config import PixelCNNConfig, PixelCNNTraining
    from pixelcnn.training import train

    run = interrupted / "pixelcnn_run"
    grids = CodeGrids.load(interrupted / "vqvae_run" / "code_grids.npz")
    train(grids, run, *configs(run, PixelCNNConfig, PixelCNNTraining))
    check_finished(run, read_json(interrupted / "expected.json")["pixelcnn_run"])
    assert PixelCNN.from_run(run).grid_shape == grids.grid_shape
