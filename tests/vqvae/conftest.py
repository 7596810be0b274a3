"""Fixtures: a trained VQ-VAE and its reconstruction of the test split."""

import pytest
from reconstruction_helpers import write_pngs

from brainslices.data.slices import open_slices
from brainslices.runs.run import Run
from vqvae import VQVAE
from vqvae.evaluate import reconstruct


@pytest.fixture(scope="module")
def run(trained_vqvae) -> Run:
    """Run of the trained VQ-VAE; tests that change it work on copies."""
    return Run(trained_vqvae)


@pytest.fixture(scope="module")
def model(run):
    return VQVAE.from_run(run)


@pytest.fixture
def preloaded_model(model, monkeypatch):
    """`reconstruct` uses the loaded model and draws no figure."""
    monkeypatch.setattr("vqvae.evaluate.VQVAE.from_run", lambda _run: model)
    monkeypatch.setattr("vqvae.evaluate.reconstruction_figure", lambda path, _rows: path.touch())


@pytest.fixture(scope="module")
def reconstruction(run, phantom_archive, tmp_path_factory):
    """Folder and metrics of the test split's reconstruction; its batches do not divide it."""
    out = tmp_path_factory.mktemp("out") / "test"
    slices = open_slices(phantom_archive.path)
    metrics = reconstruct(run, slices, out, batch_size=3, pictures=True)
    return out, metrics


@pytest.fixture
def png_folder(phantom_archive, tmp_path):
    """The archive's test slices as files in a folder without splits."""
    return write_pngs(phantom_archive, ["test"], tmp_path / "pngs", "")
