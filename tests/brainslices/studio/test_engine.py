import numpy as np
import pytest
from fake_prior import CODES, CROP, GRID, SIDE, FakePrior, FakeScorer

from brainslices.errors import InputError
from brainslices.studio.engine import BATCH, Engine


@pytest.fixture
def engine(phantom_archive):
    return Engine(FakePrior(), phantom_archive)


@pytest.fixture
def image(phantom_archive):
    return phantom_archive.images[phantom_archive.indices("test")[4]]


def test_samples_grow_to_their_codes(engine):
    *growing, done = engine.sample(2, 0.5, seed=3, shared_noise=False)
    assert len(growing) == 5
    shares = [sampling.share for sampling in (*growing, done)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for sampling in growing:
        is_sampled = sampling.codes >= 0
        np.testing.assert_array_equal(sampling.codes[is_sampled], done.codes[is_sampled])
    np.testing.assert_array_equal(done.images, CROP.cut(engine.decode(done.codes)))
    np.testing.assert_allclose(done.bits, 42 * 5, rtol=1e-6)


def test_positions_are_clipped_to_the_trained_range(engine):
    *_, done = engine.sample(2, (-0.01, 1.01), shared_noise=True)
    assert done.positions.tolist() == [0, 1]
    np.testing.assert_array_equal(done.codes[0], done.codes[1])


def test_nearest_slice_of_a_training_slice_is_itself(engine, phantom_archive, monkeypatch):
    row = phantom_archive.indices("train")[5]
    monkeypatch.setattr(engine, "decode", lambda codes: phantom_archive.load([row])[..., 0])
    *_, done = engine.sample(1, 0.5, shared_noise=False)
    ((shown, caption),) = engine.nearest_slices(done)
    np.testing.assert_array_equal(shown, CROP.cut(phantom_archive.load([row])[..., 0])[0])
    assert caption == f"SSIM 1.000, {phantom_archive.index[row].slice_id}"


def test_without_an_archive_there_are_no_neighbours_and_no_example():
    engine = Engine(FakePrior())
    *_, done = engine.sample(1, 0.5, shared_noise=False)
    assert engine.nearest_slices(done) == []
    with pytest.raises(InputError, match="not reachable"):
        engine.example(0)


def test_example_is_a_slice_of_the_test_split(engine, phantom_archive):
    tests = phantom_archive.images[phantom_archive.indices("test")]
    for seed in range(3):
        example = engine.example(seed)
        assert any((example.slices[0] == image).all() for image in tests)


def test_reconstruction_is_the_decoded_codes(engine, image):
    result = engine.reconstruct(image)
    np.testing.assert_array_equal(result.image, engine.decode(result.codes[None])[0])
    assert result.similarity.shape == (SIDE, SIDE)
    assert 0 < result.scores["ssim_foreground"] < result.scores["ssim"] < 1


def test_edit_replaces_one_code(engine, image):
    codes = engine.reconstruct(image).codes
    edited = engine.edited(codes, (2, 3), 31)
    assert edited[2, 3] == 31
    assert (edited != codes).sum() <= 1
    assert edited is not codes


@pytest.mark.parametrize(
    ("cell", "code", "name"),
    [((6, 0), 0, "row"), ((-1, 0), 0, "row"), ((0, 7), 0, "col"), ((0, 0), CODES, "code"),
     ((0, 0), 1.5, "code")],
)  # fmt: skip
def test_edit_outside_of_grid_or_codebook_is_refused(engine, cell, code, name):
    with pytest.raises(InputError, match=f"`{name}` must be a whole number"):
        engine.edited(np.zeros(GRID, "int32"), cell, code)


def test_prior_bits_are_those_of_the_likeliest_position(engine):
    bits, position = engine.prior_bits(np.zeros(GRID, "int32"))
    nearest = np.linspace(0, 1, BATCH)[np.abs(np.linspace(0, 1, BATCH) - 0.4).argmin()]
    assert position == pytest.approx(nearest)
    assert bits == pytest.approx(42 * (np.log(CODES) + abs(nearest - 0.4)) / np.log(2), rel=1e-5)


def test_avif_has_at_least_the_rate_of_the_codes(engine, image):
    coded, rate, scores = engine.avif(image / np.float32(255))
    assert coded.shape == image.shape
    assert rate >= engine.decoder.bits_per_pixel_raw
    assert set(scores) == {"ssim", "ssim_foreground", "psnr_db"}


def test_surprise_is_that_of_the_scorer_which_is_made_once(phantom_archive, image):
    made = []

    def make():
        made.append(FakeScorer())
        return made[-1]

    engine = Engine(FakePrior(), phantom_archive, make)
    assert engine.can_score
    assert not engine.has_reference
    for _ in range(2):
        result = engine.surprise(image)
    assert len(made) == 1
    expected = np.abs(engine.encode(image / np.float32(255)) - CODES / 2)
    np.testing.assert_array_equal(result.values[::8, ::8], expected)
    assert (result.bits, result.percentile) == (expected.sum(), 60)
    assert result.original.shape == result.values.shape == (48, 56)


def test_inpainted_slices_come_one_after_the_other_and_keep_what_is_visible(engine, image):
    hidden = np.zeros(image.shape, bool)
    hidden[20:30, 20:30] = True
    shown = list(engine.inpaint(image, hidden, 3, seed=0))
    assert [len(images) for images in shown] == [1, 2, 3]
    visible = ~CROP.cut(hidden[None])[0]
    expected = CROP.cut(image[None])[0][visible] / np.float32(255)
    for inpainted in shown[-1]:
        np.testing.assert_array_equal(inpainted[visible], expected)
    assert (shown[-1][0] != shown[-1][1]).any()


def test_nothing_painted_is_refused(engine, image):
    with pytest.raises(InputError, match="Paint over the part"):
        next(engine.inpaint(image, np.zeros(image.shape, bool), 1, 0))
