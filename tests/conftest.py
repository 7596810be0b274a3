"""Fixtures: phantoms for every test, the real slices for those marked `real_data`."""

import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from filelock import FileLock
from helpers import tiny_config, tiny_prior_config, tiny_prior_training, tiny_training

from brainslices.data.archive import SliceArchive, SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.phantom import phantom_slices
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run

SUBJECTS, SLICES, SIDE = 8, 8, 64
PRIOR_FIXTURES = {"trained_prior", "recorded_training"}
SPLIT_OF = ["train"] * 5 + ["validate"] * 2 + ["test"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that need the training of a prior as slow."""
    for item in items:
        if PRIOR_FIXTURES.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def unchanged_environment():
    """Undo what a test sets in the environment, which the processes of later tests inherit."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory) -> SliceArchive:
    """Archive of 8 phantom subjects (5 train, 2 validate, 1 test) x 8 slices, 64 x 64."""
    positions = np.linspace(0, 1, SLICES)

    def slices():
        for subject in range(SUBJECTS):
            images = phantom_slices(subject, positions, (SIDE, SIDE))
            for number, image in enumerate(images):
                name = f"case_{subject:03d}"
                slice_id = f"{name}_slice_{number}"
                record = SliceRecord(
                    slice_id, name, SPLIT_OF[subject], float(positions[number]), "phantom"
                )
                yield record, image

    folder = tmp_path_factory.mktemp("data") / "phantoms"
    return write_archive(folder, slices(), intensity_rule="phantom")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """Function that makes a folder once for all pytest processes and returns a copy of it."""
    is_worker = "PYTEST_XDIST_TESTRUNUID" in os.environ
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if is_worker else base) / "shared"
    shared.mkdir(exist_ok=True)

    def make(name, function):
        original, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                function(original)
                done.touch()
        return Path(shutil.copytree(original, tmp_path_factory.mktemp(name) / "run"))

    return make


@pytest.fixture(scope="session")
def trained_vqvae(phantom_archive, make_once) -> Path:
    """Run of a tiny VQ-VAE on the phantoms; tests that change it work on copies."""

    def make(path):
        from vqvae.training import train

        config = tiny_config(magnification=1.0, encoder_blocks=0, decoder_blocks=0)
        training = tiny_training(epochs=1, schedule="constant", warmup_steps=0)
        train(phantom_archive.path, path, config, training)

    run = make_once("vqvae", make)
    # Another process with an archive of its own may have trained it.
    _point(Run(run).environment_path, archive=phantom_archive.path.resolve())
    return run


@pytest.fixture(scope="session")
def trained_prior(trained_vqvae, make_once) -> Path:
    """Run of a tiny prior on that VQ-VAE's codes; tests that change it work on copies."""

    from vqvae.encode import load_or_encode

    training = tiny_prior_training()
    # Outside of `make`: also this process's copy of the VQ-VAE's run gets its code grids.
    grids = load_or_encode(trained_vqvae, variants=training.variants)

    def make(path):
        from pixelcnn.training import train

        train(grids, path, tiny_prior_config(), training)

    run = make_once("prior", make)
    _point(Run(run).config_path, vqvae_run=trained_vqvae)
    return run


def _point(path: Path, **folders: Path):
    """Replace folders that a JSON file names."""
    write_json(path, read_json(path) | {key: str(folder) for key, folder in folders.items()})


@pytest.fixture
def linked(trained_vqvae, trained_prior, tmp_path_factory):
    """Copies of both runs outside of `tmp_path`, the prior's pointing to its VQ-VAE's."""
    folder = tmp_path_factory.mktemp("linked")
    vqvae = Path(shutil.copytree(trained_vqvae, folder / "vqvae"))
    prior = Path(shutil.copytree(trained_prior, folder / "prior"))
    _point(Run(prior).config_path, vqvae_run=vqvae)
    return Run(prior), Run(vqvae)


@pytest.fixture(scope="session")
def oasis_pngs() -> Path:
    """Folder with keras_png_slices_{train,validate,test}, named by BRAINSLICES_DATA."""
    folder = os.environ.get("BRAINSLICES_DATA")
    if not folder:
        pytest.skip("needs the OASIS-1 slices: set BRAINSLICES_DATA to their folder")
    return Path(folder)


@pytest.fixture
def fresh_keras():
    """Float32 and one seed, whatever the tests before did."""
    import keras

    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_dtype_policy("float32")
