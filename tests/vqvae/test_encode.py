import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import ROOT, captured_command, error_line, no_new_files, python

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.code_grids import CodeGrids
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from vqvae.encode import augment, load_or_encode, summary
from vqvae.model import VQVAE

COMMAND = ROOT / "scripts" / "encode_codes.py"


@pytest.fixture(scope="module")
def model(trained_vqvae):
    return VQVAE.from_run(trained_vqvae)


@pytest.fixture
def run(trained_vqvae, tmp_path) -> Run:
    # Without code grids, which the fixture of a prior may have written.
    ignore = shutil.ignore_patterns("code_grids.npz")
    return Run(shutil.copytree(trained_vqvae, tmp_path / "run", ignore=ignore))


@pytest.fixture(scope="module")
def encoded(trained_vqvae, tmp_path_factory):
    """A run with its code grids of 3 variants, and those code grids."""
    path = shutil.copytree(trained_vqvae, tmp_path_factory.mktemp("runs") / "encoded")
    return path, load_or_encode(path, variants=3)


@pytest.fixture
def encoded_run(encoded, tmp_path) -> Run:
    """A copy of that run, for a test to change."""
    return Run(shutil.copytree(encoded[0], tmp_path / "encoded"))


@pytest.fixture
def no_encoding(monkeypatch):
    def fail(*_):
        raise AssertionError("code_grids.npz should be read")

    monkeypatch.setattr("vqvae.encode._encode", fail)


def replace_model(run, seed):
    """Replace the run's model by another of the same architecture."""
    model = VQVAE.from_run(run)
    rng = np.random.default_rng(seed)
    model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in model.get_weights()])
    model.save(run.model_path)
    return model


def other_archive(folder):
    image = np.full((64, 64), 99, "uint8")
    record = SliceRecord("case_000_slice_0", "case_000", "train", 0.5, "phantom")
    return write_archive(folder, [(record, image)], intensity_rule="phantom")


def assert_same_codes(one, other):
    assert list(one.splits) == list(other.splits)
    for name, split in one.splits.items():
        np.testing.assert_array_equal(split.codes, other.splits[name].codes)
    np.testing.assert_array_equal(one.variants, other.variants)


# Codes and metadata


def test_codes_are_those_of_the_model(encoded, model, phantom_archive):
    grids = encoded[1]
    assert {name: len(split) for name, split in grids.splits.items()} == {
        "train": 40,
        "validate": 16,
        "test": 8,
    }
    for name, split in grids.splits.items():
        rows = phantom_archive.indices(name)
        expected = np.asarray(model.encode_to_codes(phantom_archive.load(rows)))
        assert split.codes.dtype == np.uint16
        np.testing.assert_array_equal(split.codes, expected)
        assert len(np.unique(split.codes)) > 3


def test_metadata_match_the_archive(encoded, phantom_archive):
    for name, split in encoded[1].splits.items():
        records = [phantom_archive.index[row] for row in phantom_archive.indices(name)]
        assert split.slice_ids.tolist() == [record.slice_id for record in records]
        assert split.subjects.tolist() == [record.subject for record in records]
        assert split.positions.dtype == np.float32
        np.testing.assert_array_equal(
            split.positions, np.float32([record.position for record in records])
        )


def test_file_records_its_provenance(encoded, model, phantom_archive):
    path, grids = encoded
    assert grids.vqvae_hash == file_hash(path / "model.keras")
    assert grids.vqvae_run == str(path.resolve())
    assert grids.archive_hash == phantom_archive.content_hash
    assert (grids.num_embeddings, grids.image_shape) == (32, (64, 64))
    assert grids.grid_shape == model.code_grid_shape
    assert_same_codes(CodeGrids.load(Run(path).code_grids_path), grids)


def test_variants_are_the_codes_of_augmented_slices(encoded, model, phantom_archive):
    rows = phantom_archive.indices("train")
    originals, variants = phantom_archive.load(rows), encoded[1].variants
    max_shift = [
        max(1, int(s / g / 2)) for s, g in zip(model.crop[2:], model.code_grid_shape, strict=True)
    ]
    flipped = np.asarray(model.encode_to_codes(np.ascontiguousarray(originals[:, ::-1])))
    np.testing.assert_array_equal(variants[0], flipped)
    for number in (2, 3):
        images = augment(originals, number, rows, max_shift)
        expected = np.asarray(model.encode_to_codes(images))
        np.testing.assert_array_equal(variants[number - 1], expected)
    all_codes = [encoded[1].splits["train"].codes, *variants]
    assert len({codes.tobytes() for codes in all_codes}) == 4


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_codes_do_not_depend_on_the_batches(run, encoded, batch_size):
    assert_same_codes(load_or_encode(run.path, variants=3, batch_size=batch_size), encoded[1])


def test_archive_without_test_slices_has_no_test_codes(run, encoded, phantom_archive, tmp_path):
    rows = [row for row, record in enumerate(phantom_archive.index) if record.split != "test"]
    slices = [(phantom_archive.index[row], phantom_archive.images[row]) for row in rows]
    archive = write_archive(tmp_path / "archive", slices, intensity_rule="phantom")
    config = read_json(run.config_path) | {"archive_hash": archive.content_hash}
    write_json(run.config_path, config)
    grids = load_or_encode(run.path, archive.path)
    assert list(grids.splits) == ["train", "validate"]
    for name, split in grids.splits.items():
        np.testing.assert_array_equal(split.codes, encoded[1].splits[name].codes)


# Existing code grids


@pytest.mark.parametrize("variants", [0, 1, 3])
@pytest.mark.usefixtures("no_encoding")
def test_existing_variants_are_read_from_the_file(encoded_run, encoded, variants):
    before = encoded_run.code_grids_path.read_bytes()
    grids = load_or_encode(encoded_run.path, variants=variants)
    np.testing.assert_array_equal(grids.variants, encoded[1].variants[:variants])
    assert encoded_run.code_grids_path.read_bytes() == before


@pytest.mark.usefixtures("no_encoding")
def test_existing_codes_need_no_archive(encoded_run):
    encoded_run.environment_path.unlink()
    assert len(load_or_encode(encoded_run.path).splits["train"]) == 40


def test_more_variants_extend_the_existing_ones(run):
    one = load_or_encode(run.path, variants=1)
    assert len(CodeGrids.load(run.code_grids_path).variants) == 1
    three = load_or_encode(run.path, variants=3)
    np.testing.assert_array_equal(three.variants[:1], one.variants)
    assert len(CodeGrids.load(run.code_grids_path).variants) == 3


def test_codes_of_another_model_are_encoded_again(encoded_run, encoded, phantom_archive):
    model = replace_model(encoded_run, seed=1)
    grids = load_or_encode(encoded_run.path)
    assert grids.vqvae_hash == file_hash(encoded_run.model_path) != encoded[1].vqvae_hash
    rows = phantom_archive.indices("test")
    expected = np.asarray(model.encode_to_codes(phantom_archive.load(rows)))
    np.testing.assert_array_equal(grids.splits["test"].codes, expected)
    assert (expected != encoded[1].splits["test"].codes).any()
    assert CodeGrids.load(encoded_run.code_grids_path).vqvae_hash == grids.vqvae_hash


def test_corrupt_file_is_replaced(encoded_run, encoded):
    content = encoded_run.code_grids_path.read_bytes()
    encoded_run.code_grids_path.write_bytes(content[:1000])
    assert_same_codes(load_or_encode(encoded_run.path, variants=3), encoded[1])
    assert_same_codes(CodeGrids.load(encoded_run.code_grids_path), encoded[1])


def test_interrupted_encoding_does_not_change_the_run(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    before = sorted(item.name for item in run.path.iterdir())
    monkeypatch.setattr("vqvae.encode.augment", stop)
    with pytest.raises(KeyboardInterrupt):
        load_or_encode(run.path)
    assert sorted(item.name for item in run.path.iterdir()) == before


def test_training_accepts_an_existing_code_grid_file(tmp_path):
    (tmp_path / "code_grids.npz").touch()
    assert "code_grids.npz" not in Run(tmp_path).unexpected_files()


# Errors


def error_message(path, *arguments, **options):
    """Return the message of the error; check that nothing was written."""
    with no_new_files(path), pytest.raises(InputError) as caught:
        load_or_encode(path, *arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_out_of_range_are_refused(run):
    assert "variants=-1" in error_message(run.path, variants=-1)
    assert "batch_size=0" in error_message(run.path, batch_size=0)


def test_folders_without_a_trained_vqvae_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in error_message(tmp_path / "empty")
    run.model_path.unlink()
    assert "model.keras" in error_message(run.path)
    run.history_path.unlink()
    assert "model.keras" in error_message(run.path)
    write_json(run.config_path, read_json(run.config_path) | {"kind": "pixelcnn"})
    assert "'pixelcnn'" in error_message(run.path)


@pytest.mark.parametrize("is_argument", [True, False])
def test_error_about_another_archive_names_both(run, phantom_archive, tmp_path, is_argument):
    other = other_archive(tmp_path / "other")
    if not is_argument:
        environment = read_json(run.environment_path) | {"archive": str(other.path)}
        write_json(run.environment_path, environment)
    arguments = [other.path] if is_argument else []
    message = error_message(run.path, *arguments)
    for named in (other.path, run.path, other.content_hash[:12], phantom_archive.content_hash[:12]):
        assert str(named) in message
    assert "--data" in message


def test_another_archive_is_refused_even_if_codes_exist(encoded_run, tmp_path):
    other = other_archive(tmp_path / "other")
    assert str(other.path) in error_message(encoded_run.path, other.path)


def test_missing_archive_must_be_passed(run, phantom_archive, tmp_path):
    environment = read_json(run.environment_path)
    assert environment["archive"] == str(phantom_archive.path.resolve())
    write_json(run.environment_path, environment | {"archive": str(tmp_path / "gone")})
    message = error_message(run.path)
    assert f"{tmp_path}/gone" in message
    assert "--data" in message
    del environment["archive"]
    write_json(run.environment_path, environment)
    assert "--data" in error_message(run.path)
    run.environment_path.unlink()
    assert "--data" in error_message(run.path)
    assert len(load_or_encode(run.path, phantom_archive.path).splits) == 3


def test_locked_run_is_refused(run):
    with run.lock():
        assert str(run.path) in error_message(run.path)


# The command


@pytest.mark.slow
def test_command_writes_the_file_and_describes_it(run, encoded):
    printed = f"{summary(encoded[1])}\n{run.code_grids_path}\n"
    assert captured_command(COMMAND, "--run", run.path, "--variants", 3) == (0, printed, "")
    assert printed.startswith("train 40, validate 16, test 8 slices and 3 variants")
    assert_same_codes(CodeGrids.load(run.code_grids_path), encoded[1])


def test_codes_of_a_read_only_run_are_saved_to_path(run, encoded, tmp_path, monkeypatch):
    def refuse(self):
        raise InputError("read-only")

    monkeypatch.setattr(Run, "lock", refuse)
    path = tmp_path / "elsewhere.npz"
    with pytest.raises(InputError, match="read-only"):
        load_or_encode(run.path, variants=3)
    assert_same_codes(load_or_encode(run.path, variants=3, path=path), encoded[1])
    assert_same_codes(CodeGrids.load(path), encoded[1])
    assert not run.code_grids_path.exists()


@pytest.mark.parametrize("name", ["notes.txt", "arrays.npz", "other.npz"])
def test_codes_do_not_replace_an_unrelated_file(run, encoded, tmp_path, name):
    path = tmp_path / name
    if name == "other.npz":
        dataclasses.replace(encoded[1], vqvae_hash="0" * 64).save(path)
    else:
        path.write_bytes(b"other content")
    content = path.read_bytes()
    with pytest.raises(InputError, match=rf"`path` .*Received: .*{name}"):
        load_or_encode(run.path, path=path)
    assert path.read_bytes() == content


def test_command_reports_an_error_in_one_line_with_status_2(run):
    message = error_line(COMMAND, "--run", run.path, "--variants", "-1")
    assert message.startswith("error: `variants`")
    assert not run.code_grids_path.exists()


def test_help_lists_every_flag():
    status, out, _ = captured_command(COMMAND, "--help")
    assert status == 0
    for flag in ("--run", "--data", "--variants", "--codes"):
        assert flag in out


@pytest.mark.long
@pytest.mark.slow
def test_jax_gives_the_same_codes(run, encoded):
    pytest.importorskip("jax")
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None  # importing it fails, as where it is not installed\n"
        "import json, keras\n"
        "from vqvae.encode import load_or_encode\n"
        f"grids = load_or_encode({str(run.path)!r}, variants=3)\n"
        "print(json.dumps(keras.backend.backend()))\n"
    )
    process = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == "jax"
    grids, expected = CodeGrids.load(run.code_grids_path), encoded[1]
    for one, other in [
        (grids.variants, expected.variants),
        *((grids.splits[name].codes, expected.splits[name].codes) for name in expected.splits),
    ]:
        assert np.mean(one == other) > 0.999  # rounding decides a latent between two codes
