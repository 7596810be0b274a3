import json
import multiprocessing

import pytest
from helpers import python

from brainslices.errors import InputError
from brainslices.runs.json_files import write_json
from brainslices.runs.provenance import environment, file_hash
from brainslices.runs.run import FORMAT_VERSION, Run


def test_file_hash_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == expected


def _lock(path, locked, release):
    with Run(path).lock():
        locked.set()
        release.wait(30)


def test_lock_is_exclusive_and_released_when_its_process_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    locked, release = context.Event(), context.Event()
    process = context.Process(target=_lock, args=(tmp_path / "run", locked, release))
    process.start()
    assert locked.wait(60)
    with pytest.raises(InputError, match=f"{tmp_path}/run is in use"), Run(tmp_path / "run").lock():
        pass
    process.kill()
    process.join()
    with Run(tmp_path / "run").lock():
        pass


def test_error_releases_the_lock(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    with run.lock():
        pass


def test_config_is_read(tmp_path):
    config = {"format_version": FORMAT_VERSION, "kind": "vqvae"}
    config |= {"archive_hash": "0", "model": {}, "training": {}}
    write_json(tmp_path / "config.json", config)
    assert Run(tmp_path).open_config("vqvae") == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json"),
        ({"format_version": 99, "kind": "vqvae"}, "version 99"),
        ({"kind": "vqvae"}, "version None"),
        ({"format_version": 1, "kind": "pixelcnn"}, "'pixelcnn'; expected 'vqvae'"),
        ({"format_version": 1, "kind": "vqvae"}, "archive_hash, model, training"),
    ],
)
def test_folder_that_is_not_such_a_run_is_refused(tmp_path, config, message):
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        Run(tmp_path).open_config("vqvae")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_run_without_a_finished_epoch_has_no_model(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(InputError, match="no epoch has finished"):
        run.trained_model_path()
    run.model_path.write_bytes(b"model")
    assert run.trained_model_path() == tmp_path / "model.keras"


def test_environment_holds_versions_devices_and_metadata():
    metadata = environment(precision="float32", seed=3)
    assert {"python", "versions", "backend", "devices", "processor", "cores"} < set(metadata)
    assert (metadata["precision"], metadata["seed"]) == ("float32", 3)
    assert {"keras", "numpy", "scikit-image"} <= set(metadata["versions"])
    json.dumps(metadata, allow_nan=False)


@pytest.mark.slow
def test_model_loads_without_an_import_of_its_class():
    code = (
        "from brainslices.runs.loading import load_model\n"
        "model = load_model('tests/golden/vqvae_run', 'vqvae')\n"
        "print(type(model).__name__, type(model.config).__name__)"
    )
    ran = python("-c", code, KERAS_BACKEND="jax")
    assert ran.stdout == "VQVAE VQVAEConfig\n", ran.stderr
