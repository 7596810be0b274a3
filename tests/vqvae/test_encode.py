import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, python, tiny_config, tiny_training

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.code_grids import CodeGrids
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.provenance import file_hash
from brainslices.runs.run import Run
from vqvae.encode import augment, code_grids, summary
from vqvae.model import VQVAE
from vqvae.training import train

COMMAND = ROOT / "scripts" / "encode_codes.py"


@pytest.fixture(scope="module")
def trained(phantom_archive, tmp_path_factory) -> Path:
    """A run of one epoch; tests work on copies."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    config = tiny_config(encoder_blocks=0, decoder_blocks=0)
    training = tiny_training(epochs=1, schedule="constant", warmup_steps=0)
    train(phantom_archive.path, path, config, training)
    return path


@pytest.fixture(scope="module")
def model(trained):
    return VQVAE.from_run(Run(trained))


@pytest.fixture
def run(trained, tmp_path) -> Run:
    return Run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def encoded(trained, tmp_path_factory):
    """A run whose codes are there, with 3 variants, and those codes."""
    path = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "encoded")
    return path, code_grids(path, variants=3)


@pytest.fixture
def kept(encoded, tmp_path) -> Run:
    """A copy of that run, to be changed."""
    return Run(shutil.copytree(encoded[0], tmp_path / "kept"))


@pytest.fixture
def never_encodes(monkeypatch):
    def fail(*_):
        raise AssertionError("the codes that are there should do")

    monkeypatch.setattr("vqvae.encode._encode", fail)


def with_model(run, seed):
    """Gives the run another model of the same architecture."""
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


# What is encoded


def test_codes_are_the_models_own(encoded, model, phantom_archive):
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


def test_slices_are_named_as_in_the_archive(encoded, phantom_archive):
    for name, split in encoded[1].splits.items():
        records = [phantom_archive.index[row] for row in phantom_archive.indices(name)]
        assert split.slice_ids.tolist() == [record.slice_id for record in records]
        assert split.subjects.tolist() == [record.subject for record in records]
        assert split.positions.dtype == np.float32
        np.testing.assert_array_equal(
            split.positions, np.float32([record.position for record in records])
        )


def test_file_says_what_made_it(encoded, model, phantom_archive):
    path, grids = encoded
    assert grids.vqvae_hash == file_hash(path / "model.keras")
    assert grids.vqvae_run == str(path.resolve())
    assert grids.archive_hash == phantom_archive.content_hash
    assert (grids.num_embeddings, grids.image_shape) == (32, (64, 64))
    assert grids.grid_shape == model.code_grid_shape
    assert_same_codes(CodeGrids.load(Run(path).code_grids_path), grids)


def test_variants_are_the_codes_of_altered_slices(encoded, model, phantom_archive):
    rows = phantom_archive.indices("train")
    originals, variants = phantom_archive.load(rows), encoded[1].variants
    max_shift = [
        max(1, int(s / g / 2)) for s, g in zip(model.crop[2:], model.code_grid_shape, strict=True)
    ]
    mirrored = np.asarray(model.encode_to_codes(np.ascontiguousarray(originals[:, ::-1])))
    np.testing.assert_array_equal(variants[0], mirrored)
    for number in (2, 3):
        images = augment(originals, number, rows, max_shift)
        expected = np.asarray(model.encode_to_codes(images))
        np.testing.assert_array_equal(variants[number - 1], expected)
    flat = [encoded[1].splits["train"].codes, *variants]
    assert len({codes.tobytes() for codes in flat}) == 4


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_codes_do_not_depend_on_the_batches(run, encoded, batch_size):
    assert_same_codes(code_grids(run.path, variants=3, batch_size=batch_size), encoded[1])


def test_archive_without_test_slices_has_no_such_split(run, encoded, phantom_archive, tmp_path):
    kept = [row for row, record in enumerate(phantom_archive.index) if record.split != "test"]
    slices = [(phantom_archive.index[row], phantom_archive.images[row]) for row in kept]
    archive = write_archive(tmp_path / "archive", slices, intensity_rule="phantom")
    config = read_json(run.config_path) | {"archive_hash": archive.content_hash}
    write_json(run.config_path, config)
    grids = code_grids(run.path, archive.path)
    assert list(grids.splits) == ["train", "validate"]
    for name, split in grids.splits.items():
        np.testing.assert_array_equal(split.codes, encoded[1].splits[name].codes)


# The file that is there already


@pytest.mark.parametrize("variants", [0, 1, 3])
def test_as_many_variants_or_fewer_are_read_from_the_file(kept, encoded, never_encodes, variants):
    before = kept.code_grids_path.read_bytes()
    grids = code_grids(kept.path, variants=variants)
    np.testing.assert_array_equal(grids.variants, encoded[1].variants[:variants])
    assert kept.code_grids_path.read_bytes() == before


def test_kept_codes_need_no_archive(kept, never_encodes):
    kept.environment_path.unlink()
    assert len(code_grids(kept.path).splits["train"]) == 40


def test_more_variants_are_encoded_and_begin_with_the_same(run):
    few = code_grids(run.path, variants=1)
    assert len(CodeGrids.load(run.code_grids_path).variants) == 1
    many = code_grids(run.path, variants=3)
    np.testing.assert_array_equal(many.variants[:1], few.variants)
    assert len(CodeGrids.load(run.code_grids_path).variants) == 3


def test_another_model_encodes_anew(kept, encoded, phantom_archive):
    model = with_model(kept, seed=1)
    grids = code_grids(kept.path)
    assert grids.vqvae_hash == file_hash(kept.model_path) != encoded[1].vqvae_hash
    rows = phantom_archive.indices("test")
    expected = np.asarray(model.encode_to_codes(phantom_archive.load(rows)))
    np.testing.assert_array_equal(grids.splits["test"].codes, expected)
    assert (expected != encoded[1].splits["test"].codes).any()
    assert CodeGrids.load(kept.code_grids_path).vqvae_hash == grids.vqvae_hash


def test_damaged_file_is_made_anew(kept, encoded):
    whole = kept.code_grids_path.read_bytes()
    kept.code_grids_path.write_bytes(whole[:1000])
    assert_same_codes(code_grids(kept.path, variants=3), encoded[1])
    assert_same_codes(CodeGrids.load(kept.code_grids_path), encoded[1])


def test_failure_on_the_way_leaves_the_run_as_it_was(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    before = sorted(item.name for item in run.path.iterdir())
    monkeypatch.setattr("vqvae.encode.augment", stop)
    with pytest.raises(KeyboardInterrupt):
        code_grids(run.path)
    assert sorted(item.name for item in run.path.iterdir()) == before


def test_codes_are_no_stranger_to_the_training(run, tmp_path):
    (tmp_path / "code_grids.npz").touch()
    assert "code_grids.npz" not in Run(tmp_path).unexpected_files()


# Refusals


def refusal(path, *arguments, **options):
    """The message, having seen that nothing was written."""
    before = sorted(path.rglob("*"))
    with pytest.raises(InputError) as caught:
        code_grids(path, *arguments, **options)
    assert sorted(path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_out_of_range_are_refused(run):
    expected = "`variants` must be at least 0. Received: variants=-1."
    assert refusal(run.path, variants=-1) == expected
    expected = "`batch_size` must be at least 1. Received: batch_size=0."
    assert refusal(run.path, batch_size=0) == expected


def test_other_folders_and_unfinished_runs_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refusal(tmp_path / "empty")
    run.model_path.unlink()
    assert "finished epochs, but its model.keras is gone" in refusal(run.path)
    run.history_path.unlink()
    assert f"Run {run.path} has no model.keras: no epoch" in refusal(run.path)
    write_json(run.config_path, read_json(run.config_path) | {"kind": "pixelcnn"})
    assert "of kind 'pixelcnn'; expected 'vqvae'" in refusal(run.path)


@pytest.mark.parametrize("named", [True, False])
def test_another_archive_is_refused_naming_both(run, phantom_archive, tmp_path, named):
    other = other_archive(tmp_path / "other")
    if not named:
        environment = read_json(run.environment_path) | {"archive": str(other.path)}
        write_json(run.environment_path, environment)
    message = refusal(run.path, *[other.path] * named)
    assert f"{other.path} is another archive (content {other.content_hash[:12]})" in message
    assert f"than run {run.path} was trained on" in message
    assert f"(content {phantom_archive.content_hash[:12]}). Give that one as --data." in message


def test_another_archive_is_refused_even_where_the_codes_are_there(kept, tmp_path):
    other = other_archive(tmp_path / "other")
    assert "is another archive" in refusal(kept.path, other.path)


def test_archive_that_nobody_tells_must_be_given(run, phantom_archive, tmp_path):
    environment = read_json(run.environment_path)
    assert environment["archive"] == str(phantom_archive.path.resolve())
    write_json(run.environment_path, environment | {"archive": str(tmp_path / "gone")})
    message = refusal(run.path)
    assert f"was trained on the archive {tmp_path}/gone, which is no longer there." in message
    assert message.endswith("as --data.")
    del environment["archive"]
    for wanting in (
        lambda: write_json(run.environment_path, environment),
        run.environment_path.unlink,
    ):
        wanting()
        assert f"Run {run.path} does not tell where its archive lies. Give" in refusal(run.path)
    assert len(code_grids(run.path, phantom_archive.path).splits) == 3


def test_run_in_use_is_refused(run):
    with run.lock():
        assert f"Run folder {run.path} is in use by another" in refusal(run.path)


# Augmentation


IMAGES = np.random.default_rng(0).random((30, 9, 7, 1), "float32") + 0.1
ROWS = np.arange(100, 130)


def shifted(image, down, right):
    """By a loop over the pixels."""
    moved = np.zeros_like(image)
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            if 0 <= row + down < image.shape[0] and 0 <= col + right < image.shape[1]:
                moved[row + down, col + right] = image[row, col]
    return moved


@pytest.mark.parametrize("variant", [2, 3, 4])
@pytest.mark.parametrize("max_shift", [(1, 2), (3, 0), (12, 8)])
def test_moved_slices_are_whole_shifts_with_zeros(variant, max_shift):
    """Brute force: of all moves within max_shift, one gives the slice."""
    originals = IMAGES[:, ::-1] if variant % 2 else IMAGES
    found = set()
    for original, image in zip(originals, augment(IMAGES, variant, ROWS, max_shift), strict=True):
        moves = [
            (down, right)
            for down in range(-max_shift[0], max_shift[0] + 1)
            for right in range(-max_shift[1], max_shift[1] + 1)
            if np.array_equal(image, shifted(original, down, right))
        ]
        assert moves
        if len(moves) == 1:
            found.add(moves[0])
    for axis in (0, 1):
        moves = {move[axis] for move in found}
        assert not max_shift[axis] or {min(moves) < 0, max(moves) > 0} == {True}
    if max(max_shift) < 4:
        assert {abs(move[0]) for move in found} >= {max_shift[0]}
        assert {abs(move[1]) for move in found} >= {max_shift[1]}


def test_first_variant_is_the_mirror_image():
    mirrored = augment(IMAGES, 1, ROWS, (3, 3))
    np.testing.assert_array_equal(mirrored, np.flip(IMAGES, axis=1))
    np.testing.assert_array_equal(augment(mirrored, 1, ROWS, (3, 3)), IMAGES)
    np.testing.assert_array_equal(augment(IMAGES, 0, ROWS, (3, 3)), IMAGES)


def test_augmentation_leaves_the_originals_and_their_type():
    for dtype in ("float32", "uint8"):
        images = (255 * IMAGES).astype(dtype)
        before = images.copy()
        for variant in range(4):
            altered = augment(images, variant, ROWS, (2, 2))
            assert (altered.dtype, altered.shape) == (images.dtype, images.shape)
            altered[:] = 0
            np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("variant", [1, 2, 3])
def test_augmentation_depends_on_the_row_and_the_variant_alone(variant):
    whole = augment(IMAGES, variant, ROWS, (3, 2))
    np.testing.assert_array_equal(augment(IMAGES, variant, ROWS, (3, 2)), whole)
    for part in (slice(4, 5), slice(7, 30, 3), slice(None, None, -1)):
        np.testing.assert_array_equal(
            augment(IMAGES[part], variant, ROWS[part], (3, 2)), whole[part]
        )
    if variant > 1:
        assert (augment(IMAGES, variant, ROWS + 1, (3, 2)) != whole).any()
        assert (augment(IMAGES, variant + 2, ROWS, (3, 2)) != whole).any()


# The command


def command(*words):
    ran = python(COMMAND, *words)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.slow
def test_command_writes_the_file_and_tells_of_it(run, encoded):
    status, out, err = command("--run", run.path, "--variants", 3)
    assert (status, err) == (0, "")
    assert out == f"{summary(encoded[1])}\n{run.code_grids_path}\n"
    assert out.startswith("train 40, validate 16, test 8 slices and 3 variants of the train slices")
    assert "out of 32 codes\norder-0 entropy of the train slices: " in out
    assert_same_codes(CodeGrids.load(run.code_grids_path), encoded[1])


@pytest.mark.slow
def test_command_refuses_in_one_line_with_status_2(run, phantom_archive, tmp_path):
    other = other_archive(tmp_path / "other")
    cases = [
        (["--run", tmp_path], f"{tmp_path} is not a run folder"),
        (["--run", run.path, "--data", other.path], f"{other.path} is another archive"),
        (["--run", run.path, "--variants", "-1"], "`variants` must be at least 0."),
    ]
    for words, message in cases:
        status, out, err = command(*words)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
    assert not run.code_grids_path.exists()


def test_help_names_every_flag():
    status, out, _ = command("--help")
    assert status == 0
    for flag in ("--run", "--data", "--variants"):
        assert flag in out


@pytest.mark.slow
def test_jax_gives_the_same_codes(run, encoded):
    pytest.importorskip("jax")
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None  # importing it fails, as where it is not installed\n"
        "import json, keras\n"
        "from vqvae.encode import code_grids\n"
        f"grids = code_grids({str(run.path)!r}, variants=3)\n"
        "print(json.dumps(keras.backend.backend()))\n"
    )
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == "jax"
    found, expected = CodeGrids.load(run.code_grids_path), encoded[1]
    for one, other in [
        (found.variants, expected.variants),
        *((found.splits[name].codes, expected.splits[name].codes) for name in expected.splits),
    ]:
        assert np.mean(one == other) > 0.999  # a latent between two codes may fall to either
