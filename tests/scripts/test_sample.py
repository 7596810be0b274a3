import shutil

import numpy as np
import pytest
from helpers import (
    ROOT,
    flags,
    python,
    save_image,
    script_main,
    tiny_config,
    tiny_prior_config,
    tiny_prior_training,
    tiny_training,
)
from PIL import Image

from brainslices import cli
from brainslices.data.code_grids import CodeGrids
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.run import Run
from pixelcnn.generate import FILES, MEASURES
from pixelcnn.model import PixelCNN
from pixelcnn.sampling import MASKED
from vqvae.inpainting import Inpainting
from vqvae.model import VQVAE

SCRIPTS = ROOT / "scripts"
COMMAND = SCRIPTS / "sample.py"
LEVELS = np.linspace(0, 1, 8, dtype="float32")  # of the phantoms

pytestmark = pytest.mark.usefixtures("fresh_keras")


def call(main, *words):
    """Run a command in this process: its exit status."""
    return cli.run(lambda: main([str(word) for word in words]))


@pytest.fixture(scope="module")
def main():
    return script_main(COMMAND)


@pytest.fixture
def sample(main, trained_prior, tmp_path, capsys):
    """Samples with the tiny prior into a folder of its own; gives that and what was printed."""

    def go(name, *words):
        status = call(main, "--run", trained_prior, "--out", tmp_path / name, *words)
        out, err = capsys.readouterr()
        assert status == 0, err
        return tmp_path / name, out

    return go


@pytest.fixture(scope="module")
def done(main, trained_prior, tmp_path_factory):
    """Five samples, in batches that do not divide them."""
    out = tmp_path_factory.mktemp("out") / "samples"
    words = ("--count", 5, "--seed", 3, "--batch-size", 2)
    assert call(main, "--run", trained_prior, "--out", out, *words) == 0
    return out


@pytest.fixture(scope="module")
def vqvae(trained_vqvae):
    return VQVAE.from_run(Run(trained_vqvae), "float32")


def arrays(out):
    with np.load(out / "codes.npz") as file:
        return {key: file[key] for key in file.files}


def files(out):
    return sorted((out / "slices").iterdir())


def slices(out):
    """The written pictures, uint8 of shape (n, rows, cols)."""
    found = []
    for path in files(out):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
            found.append(np.asarray(picture))
    return np.stack(found)


def assert_same_samples(one, other):
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for key in first.keys() - {"log_prob"}:
        np.testing.assert_array_equal(first[key], second[key])
    np.testing.assert_allclose(first["log_prob"], second["log_prob"], atol=1e-5)
    assert [path.name for path in files(one)] == [path.name for path in files(other)]
    np.testing.assert_array_equal(slices(one), slices(other))


# What is written


def test_folder_holds_slices_of_the_source_size(done):
    assert {path.name for path in done.iterdir()} == set(FILES)
    train_positions = ("0.000", "0.250", "0.500", "0.750", "1.000")
    names = [f"sample_{k:04d}_position_{level}.png" for k, level in enumerate(train_positions)]
    assert [path.name for path in files(done)] == names
    assert slices(done).shape == (5, 64, 64)
    with Image.open(done / "contact_sheet.png") as picture:
        assert picture.format == "PNG"


def test_codes_are_told_and_decode_to_the_slices(done, vqvae):
    found = arrays(done)
    assert found["codes"].shape == (5, *vqvae.code_grid_shape)
    assert found["codes"].max() < 32
    np.testing.assert_array_equal(found["positions"], np.linspace(0, 1, 5, dtype="float32"))
    pictures = np.asarray(vqvae.decode_codes(found["codes"].astype("int32")))[..., 0]
    np.testing.assert_allclose(slices(done), 255 * pictures, atol=0.501)


def test_log_probabilities_are_the_models_own(done, trained_prior):
    found, model = arrays(done), PixelCNN.from_run(Run(trained_prior))
    expected = model.log_prob(found["codes"].astype("int32"), found["positions"])
    np.testing.assert_allclose(found["log_prob"], expected, atol=1e-4)


def test_metrics_tell_what_was_drawn_with(done, trained_prior, trained_vqvae):
    metrics = read_json(done / "metrics.json")
    costs = {f"nats_per_code_{name}" for name in ("train", "validate", "test", "samples")}
    drawn_with = {"samples": 5, "seed": 3, "temperature": 1.0, "top_k": None, "top_p": None}
    of_test = {"nats_per_code", "bits_per_slice", "bits_per_pixel_prior"}
    assert set(metrics) == costs | of_test | {*drawn_with, "vqvae_hash", "prior_hash", "split"}
    assert metrics["nats_per_code"] == metrics["nats_per_code_test"]
    assert drawn_with.items() <= metrics.items()
    assert metrics["vqvae_hash"] == CodeGrids.load(Run(trained_vqvae).code_grids_path).vqvae_hash
    assert metrics["nats_per_code_samples"] == pytest.approx(-arrays(done)["log_prob"].mean())


def test_command_says_what_it_wrote(sample):
    out, printed = sample("out", "--count", 1, "--temperature", 0.5, "--top-p", 0.9)
    line, last = printed.splitlines()
    assert line.startswith("1 samples at temperature 0.5, ")
    assert last == f"{out}: slices/, contact_sheet.png, codes.npz, metrics.json"
    assert arrays(out)["positions"] == [0.5]


# What is drawn


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_do_not_matter(sample, done, batch_size):
    out, _ = sample("out", "--count", 5, "--seed", 3, "--batch-size", batch_size)
    assert_same_samples(out, done)


def test_seed_fixes_every_byte(sample):
    first, second = (sample(name, "--count", 3, "--seed", 7)[0] for name in ("first", "second"))
    other, _ = sample("other", "--count", 3, "--seed", 8)
    for one, two in zip(files(first), files(second), strict=True):
        assert one.read_bytes() == two.read_bytes()
    for name in ("contact_sheet.png", "metrics.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (arrays(first)["codes"] != arrays(other)["codes"]).any(axis=(1, 2)).all()


def test_samples_are_unlike_each_other(done):
    codes = arrays(done)["codes"].reshape(5, -1)
    assert all((codes[k] != codes[:k]).any(axis=1).all() for k in range(1, 5))


def test_positions_asked_are_taken_in_turn(sample):
    one, _ = sample("one", "--count", 2, "--position", 0.3)
    np.testing.assert_array_equal(arrays(one)["positions"], np.float32([0.3, 0.3]))
    several, _ = sample("several", "--count", 3, "--position", 0.75, 0.25)
    np.testing.assert_array_equal(arrays(several)["positions"], np.float32([0.25, 0.75, 0.75]))


def test_small_temperature_and_top_1_draw_the_likeliest(sample, trained_prior):
    words = ("--count", 4, "--position", 0.5)
    cold, _ = sample("cold", *words, "--temperature", 1e-8)
    first, _ = sample("first", *words, "--top-k", 1)
    codes = arrays(cold)["codes"]
    assert (codes == codes[0]).all()
    assert_same_samples(cold, first)
    model, found = PixelCNN.from_run(Run(trained_prior)), arrays(first)
    inputs = {"codes": codes.astype("int32"), "position": found["positions"]}
    logits = np.asarray(model(inputs))
    chosen = np.take_along_axis(logits, codes.astype("int64")[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(axis=-1), atol=1e-5)


def test_earlier_sampling_is_replaced(sample, tmp_path):
    sample("out", "--count", 4)
    out, _ = sample("out", "--count", 2, "--seed", 1)
    assert len(files(out)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Beside real slices


def test_evaluation_and_nearest_are_measured_on_the_archive(sample):
    words = ("--count", 6, "--position", 0.4, 0.8)
    out, printed = sample("out", *words, "--evaluate", "--nearest")
    plain, _ = sample("plain", *words)
    metrics = read_json(out / "metrics.json")
    figures = {name + end for name in MEASURES for end in ("", "_real")}
    assert set(metrics) == figures | set(read_json(plain / "metrics.json"))
    assert all(metrics[name] is not None for name in figures)
    assert 0 < metrics["nearest_train_ssim"] < 1
    table = printed.splitlines()[1:-1]
    assert table[0].split() == ["samples", "real"]
    assert len(table) == 1 + len(MEASURES)
    assert_same_samples(out, plain)
    sizes = []
    for folder in (out, plain):
        with Image.open(folder / "contact_sheet.png") as picture:
            sizes.append(picture.size)
    assert sizes[0] != sizes[1]


def test_archive_that_moved_is_given(sample, linked, phantom_archive, main, tmp_path):
    prior, vqvae = linked
    facts = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**facts, "archive": str(tmp_path / "gone")})
    words = ["--run", prior.path, "--count", 2, "--position", 0.5, "--nearest"]
    given = ["--data", phantom_archive.path, "--out", tmp_path / "out"]
    assert call(main, *words, *given) == 0


# Completion


@pytest.fixture(scope="module")
def original(phantom_archive):
    return phantom_archive.images[phantom_archive.indices("test")[4]]


@pytest.mark.parametrize("hidden", [None, (24, 26, 16, 14)], ids=["lower half", "hole"])
def test_completion_keeps_what_is_known(sample, original, vqvae, tmp_path, hidden):
    """And nothing of what is hidden changes anything."""
    box = hidden or (32, 0, 32, 64)
    inside = (slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3]))
    other = original.copy()
    other[inside] = np.random.default_rng(0).integers(0, 256, box[2:])
    words = ["--count", 3, *(["--hidden", *hidden] if hidden else [])]
    outs = []
    for name, pixels in (("first", original), ("second", other)):
        path = save_image(tmp_path / f"{name}.png", pixels)
        outs.append(sample(name, "--complete", path, *words)[0])
    assert_same_samples(*outs)

    found = arrays(outs[0])
    assert (found["positions"] == found["positions"][0]).all()
    assert np.abs(LEVELS - found["positions"][0]).min() < 1e-6
    known = Inpainting(vqvae, original, hidden).observed_codes(MASKED)
    for codes in found["codes"]:
        np.testing.assert_array_equal(codes[known != MASKED], known[known != MASKED])
    unknown = found["codes"][:, known == MASKED]
    assert all((unknown[one] != unknown[one - 1]).any() for one in range(3))

    decoded = np.asarray(vqvae.decode_codes(found["codes"].astype("int32")))[..., 0]
    expected = np.tile(original.astype(float), (3, 1, 1))
    expected[:, *inside] = 255 * decoded[:, *inside]
    np.testing.assert_allclose(slices(outs[0]), expected, atol=0.501)


def test_completion_at_a_position_with_seed(sample, original, tmp_path):
    path = save_image(tmp_path / "slice.png", original)
    words = ["--complete", path, "--position", 0.3, "--count", 2]
    first, _ = sample("first", *words)
    again, _ = sample("again", *words)
    other, _ = sample("other", *words, "--seed", 1)
    assert_same_samples(first, again)
    np.testing.assert_array_equal(arrays(first)["positions"], np.float32([0.3, 0.3]))
    assert (arrays(first)["codes"] != arrays(other)["codes"]).any()


# What is refused


@pytest.fixture
def linked(trained_vqvae, trained_prior, tmp_path_factory):
    """Copies of both runs, the prior's pointing to its VQ-VAE's."""
    folder = tmp_path_factory.mktemp("linked")
    vqvae = Run(shutil.copytree(trained_vqvae, folder / "vqvae"))
    prior = Run(shutil.copytree(trained_prior, folder / "prior"))
    config = read_json(prior.config_path)
    write_json(prior.config_path, {**config, "vqvae_run": str(vqvae.path)})
    return prior, vqvae


@pytest.fixture
def refused(main, trained_prior, tmp_path, capsys):
    """Asks for what cannot be; gives the one line that is said, having seen nothing written."""

    def go(*words, run=trained_prior, out=None):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        asked = ["--run", run, "--out", out or tmp_path / "out", "--count", 2, *words]
        assert call(main, *asked) == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return go


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--position", -0.1], "from 0 (lowest) to 1 (highest). Received: position=-0.1."),
        (["--position", 0.5, 1.5], "Received: position=1.5."),
        (["--position", "nan"], "Received: position=nan."),
        (["--temperature", 0], "`temperature` must be a positive number. Received: temperature=0"),
        (["--temperature", -1], "temperature=-1"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--temperature", "inf"], "temperature=inf"),
        (["--top-k", 0], "`top_k` must be from 1 to 32, the size of the codebook. Received: top_k"),
        (["--top-k", 33], "top_k=33"),
        (["--top-p", 0], "`top_p` must be above 0 and at most 1. Received: top_p=0"),
        (["--top-p", 1.1], "top_p=1.1"),
        (["--top-p", "nan"], "top_p=nan"),
        (["--hidden", 0, 0, 9, 9], "give that picture as --complete"),
        (["--complete", "slice.png", "--position", 0.1, 0.2], "one `position` in the head"),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, list) else "",
)
def test_values_out_of_their_range_are_refused(refused, words, said):
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", 0], "`count` must be at least 1. Received: count=0."),
        (["--count", -2], "count=-2"),
        (["--seed", -1], "seed=-1"),
        (["--batch-size", 0], "batch_size=0"),
        (["--count", "many"], "'many'"),
        (["--hidden", 1, 2, 3], "--hidden"),
        (["--top-k", 1.5], "1.5"),
    ],
)
def test_values_that_no_model_could_take_are_refused_by_the_parser(
    main, trained_prior, tmp_path, capsys, words, said
):
    with pytest.raises(SystemExit) as stopped:
        call(main, "--run", trained_prior, "--out", tmp_path / "out", *words)
    assert stopped.value.code == 2
    # In a frame, and cut to the terminal's width.
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ((0, 0, 0, 5), "hidden=(0, 0, 0, 5) (top, left, rows, cols)"),
        ((60, 60, 5, 5), "must be a part of the picture of 64 x 64 pixels"),
        ((-4, 0, 20, 5), "hidden=(-4, 0, 20, 5)"),
        ((0, 0, 12, 64), "lies outside of what the model codes, 40 x 48 pixels from (12, 8)"),
    ],
)
def test_hidden_parts_without_a_code_are_refused(refused, original, tmp_path, hidden, said):
    path = save_image(tmp_path / "slice.png", original)
    assert said in refused("--complete", path, "--hidden", *hidden)


def test_what_is_no_picture_to_complete_is_refused(refused, original, tmp_path):
    assert "absent.png is not a readable image" in refused("--complete", tmp_path / "absent.png")
    (tmp_path / "words.png").write_text("words")
    assert "words.png is not a readable image" in refused("--complete", tmp_path / "words.png")
    assert "is not a readable image" in refused("--complete", tmp_path)
    wide = save_image(tmp_path / "wide.png", np.zeros((48, 56), "uint8"))
    said = "has 48 x 56 pixels (rows x cols), but the model takes 64 x 64"
    assert said in refused("--complete", wide)
    red = save_image(tmp_path / "red.png", np.full((64, 64, 3), (9, 0, 0), "uint8"))
    assert "its colours are no greys" in refused("--complete", red)


def test_runs_that_are_no_prior_are_refused(refused, trained_vqvae, linked, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert f"{empty} is not a run folder: it has no config.json" in refused(run=empty)
    assert f"{empty / 'absent'} is not a run folder" in refused(run=empty / "absent")
    assert "kind 'vqvae'; expected 'pixelcnn'" in refused(run=trained_vqvae)
    prior, _ = linked
    whole = prior.model_path.read_bytes()
    prior.model_path.write_bytes(whole[:1000])
    assert "model.keras cannot be loaded: it is damaged" in refused(run=prior.path)
    prior.model_path.unlink()
    assert "finished epochs, but its model.keras is gone. Restore it" in refused(run=prior.path)
    prior.history_path.unlink()
    said = f"Run {prior.path} has no model.keras: no epoch has finished yet"
    assert said in refused(run=prior.path)


def test_prior_without_its_vqvae_is_refused(refused, linked, trained_prior):
    prior, vqvae = linked
    assert "kind 'pixelcnn'; expected 'vqvae'" in refused("--vqvae", trained_prior)
    model_hash = read_json(prior.config_path)["vqvae_hash"]
    model = VQVAE.from_run(vqvae)
    model.set_weights([weights + 0.1 for weights in model.get_weights()])
    model.save(vqvae.model_path)
    message = refused(run=prior.path)
    assert "Give the run that made them as --vqvae" in message
    assert f"codes of the VQ-VAE {model_hash[:12]}" in message
    assert f"but {vqvae.path} holds " in message
    shutil.rmtree(vqvae.path)
    message = refused(run=prior.path)
    assert "but there is no model.keras there. Give that VQ-VAE's folder as --vqvae" in message


@pytest.mark.parametrize("flag", ["--evaluate", "--nearest"])
def test_archive_that_is_gone_is_told_before_anything_is_drawn(refused, linked, tmp_path, flag):
    prior, vqvae = linked
    facts = read_json(vqvae.environment_path)
    write_json(vqvae.environment_path, {**facts, "archive": str(tmp_path / "gone")})
    message = refused(flag, run=prior.path)
    assert f"{tmp_path / 'gone'}, which is no longer there. Give its new place as --data" in message


def test_too_few_samples_to_measure_are_refused(refused):
    message = refused("--evaluate", "--position", 0.1, 0.9)
    assert "Received: 2 slices without such a pair. Sample more" in message


def test_folder_with_other_things_is_refused_and_untouched(refused, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("words")
    assert "thesis holds other things than an earlier sampling (chapter.txt)" in refused(out=folder)
    assert "is a file; --out must be a folder" in refused(out=folder / "chapter.txt")
    assert (folder / "chapter.txt").read_text() == "words"


def test_run_is_never_taken_for_an_earlier_sampling(refused, linked):
    for run in linked:
        before = run.model_path.read_bytes()
        assert "holds other things than an earlier sampling" in refused(out=run.path)
        assert run.model_path.read_bytes() == before


# In processes of their own


@pytest.mark.slow
def test_refusal_in_a_process_of_its_own_is_one_line(trained_prior, tmp_path):
    ran = python(COMMAND, "--run", trained_prior, "--out", tmp_path / "out", "--top-k", 99)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: `top_k` must be from 1 to 32, the size of the codebook. Received: top_k=99.\n"
    )


@pytest.mark.slow
def test_run_of_tensorflow_samples_and_completes_alike_under_jax(
    sample, trained_prior, original, tmp_path
):
    pytest.importorskip("jax")
    path = save_image(tmp_path / "slice.png", original)
    asked = {"drawn": ["--count", 3], "completed": ["--count", 2, "--complete", path]}
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None  # importing it fails\n"
        f"sys.path[:0] = [{str(ROOT / 'tests/scripts')!r}, {str(ROOT / 'tests/support')!r}]\n"
        "from test_sample import COMMAND, call, script_main\n"
        "main = script_main(COMMAND)\n"
    )
    for name, words in asked.items():
        words = ["--run", trained_prior, "--out", tmp_path / "jax" / name, *words]
        code += f"assert call(main, *{[*map(str, words)]!r}) == 0\n"
    ran = python("-c", code, timeout=300, KERAS_BACKEND="jax")
    assert ran.returncode == 0, ran.stderr
    for name, words in asked.items():
        here, there = arrays(sample(name, *words)[0]), arrays(tmp_path / "jax" / name)
        np.testing.assert_array_equal(here["codes"], there["codes"])
        np.testing.assert_array_equal(here["positions"], there["positions"])
        np.testing.assert_allclose(here["log_prob"], there["log_prob"], atol=1e-4)
        gap = slices(tmp_path / name).astype(int) - slices(tmp_path / "jax" / name)
        assert np.abs(gap).max() <= 1  # rounding to 8 bits


@pytest.mark.slow
def test_whole_chain_from_phantoms_to_samples(tmp_path, capsys):
    archive, vqvae, prior = (tmp_path / name for name in ("archive", "vqvae", "prior"))
    source = ["--subjects", 6, "--slices", 4, "--size", 64, 64, "--fractions", 0.5, 0.25, 0.25]
    networks = tiny_config(magnification=1.0, encoder_blocks=0, decoder_blocks=0)
    short = tiny_training(epochs=1, schedule="constant", warmup_steps=0, batch_size=4)
    small = [*flags(tiny_prior_config(attention_layers=1))]
    chain = {
        "prepare_data": ["--source", "phantom", "--out", archive, *source],
        "train_vqvae": ["--data", archive, "--run", vqvae, *flags(networks), *flags(short)],
        "encode_codes": ["--run", vqvae, "--variants", 2],
        "train_pixelcnn": [
            *("--vqvae", vqvae, "--run", prior, *small),
            *flags(tiny_prior_training(variants=2, batch_size=4)),
        ],
        "sample": [
            *("--run", prior, "--out", tmp_path / "out", "--count", 4, "--position", 0.5),
            *("--evaluate", "--nearest"),
        ],
    }
    for name, words in chain.items():
        assert call(script_main(SCRIPTS / f"{name}.py"), *words) == 0, capsys.readouterr().err
    assert slices(tmp_path / "out").shape == (4, 64, 64)
    assert read_json(tmp_path / "out" / "metrics.json")["frechet_distance"] >= 0
    assert CodeGrids.load(vqvae / "code_grids.npz").variants.shape[0] == 2
