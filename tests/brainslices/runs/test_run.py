import json
import multiprocessing
import stat

import pytest

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.provenance import environment, file_hash
from brainslices.runs.run import FORMAT_VERSION, Run


def test_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "value.txt"
    with atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
        temporary.write_text("first")
        assert not path.exists()
    with atomic_path(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert [item.name for item in path.parent.iterdir()] == ["value.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_file_stays_as_it_was_when_the_block_fails(tmp_path, error):
    path = tmp_path / "value.txt"
    path.write_text("first")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "first"
    assert [item.name for item in tmp_path.iterdir()] == ["value.txt"]


def test_json_round_trip_makes_not_a_number_null(tmp_path):
    path = tmp_path / "value.json"
    value = {"a": 1, "b": [1.5, float("nan"), (2, float("-inf"))], "c": {"d": float("inf")}}
    write_json(path, value)
    assert read_json(path) == {"a": 1, "b": [1.5, None, [2, None]], "c": {"d": None}}
    assert "NaN" not in path.read_text()


def test_value_that_is_no_json_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "must hold a JSON object. Received: list."),
    ],
)
def test_damaged_json_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_absent_json_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"There is no file {tmp_path}/no.json. Give the path"):
        read_json(tmp_path / "no.json")


def test_file_hash_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == expected


def _hold(path, held, release):
    with Run(path).lock():
        held.set()
        release.wait(30)


def test_run_in_use_is_refused_and_free_again_when_its_process_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", held, release))
    process.start()
    assert held.wait(30)
    expected = f"Run folder {tmp_path}/run is in use by another process."
    with pytest.raises(InputError, match=expected), Run(tmp_path / "run").lock():
        pass
    process.kill()
    process.join()
    with Run(tmp_path / "run").lock():
        pass


def test_error_inside_the_lock_frees_it(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    with run.lock():
        pass


def test_config_of_a_run_is_read(tmp_path):
    config = {"format_version": FORMAT_VERSION, "kind": "vqvae"}
    config |= {"archive_hash": "0", "model": {}, "training": {}}
    write_json(tmp_path / "config.json", config)
    assert Run(tmp_path).open_config("vqvae") == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is not a run folder: it has no config.json."),
        ({"format_version": 99, "kind": "vqvae"}, "has format version 99, but this version"),
        ({"kind": "vqvae"}, "has format version None"),
        ({"format_version": 1, "kind": "pixelcnn"}, "of kind 'pixelcnn'; expected 'vqvae'."),
        ({"format_version": 1, "kind": "vqvae"}, "lacks archive_hash, model, training."),
    ],
)
def test_other_folders_are_refused(tmp_path, config, message):
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        Run(tmp_path).open_config("vqvae")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_run_without_a_finished_epoch_has_no_model(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(InputError, match="has no model.keras: no epoch has finished yet"):
        run.trained_model_path()
    run.model_path.write_bytes(b"model")
    assert run.trained_model_path() == tmp_path / "model.keras"


def test_environment_says_what_a_number_depends_on():
    found = environment(precision="float32", seed=3)
    assert {"python", "versions", "backend", "devices", "processor", "cores"} < set(found)
    assert (found["precision"], found["seed"]) == ("float32", 3)
    assert {"keras", "numpy", "scikit-image"} <= set(found["versions"])
    json.dumps(found, allow_nan=False)
