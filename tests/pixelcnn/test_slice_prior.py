from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_prior import CODES, GRID, tiny_pixelcnn

from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.runs.run import Run
from pixelcnn import SlicePrior
from pixelcnn.conditions import Variable, add_subjects
from pixelcnn.config import SamplingConfig
from pixelcnn.generate import Samples, write_samples
from pixelcnn.provenance import Provenance
from pixelcnn.sampling import Sampler
from pixelcnn.scorer import Scorer
from vqvae.model import VQVAE

pytestmark = pytest.mark.usefixtures("fresh_keras")

POSITIONS = np.float32([0.2, 0.5, 0.8])


class BlockDecoder:
    """Codes as blocks of 2 x 2 pixels."""

    def decode_codes(self, codes):
        return np.kron(codes, np.ones((2, 2)))[..., None] / (CODES - 1)

    def encode_to_codes(self, images):
        return np.rint(images[:, ::2, ::2, 0] * (CODES - 1)).astype("int32")

    def inpainting(self, image, hidden):
        """The rows of `hidden` are masked."""
        codes = self.encode_to_codes(image.reshape(1, *image.shape[:2], 1))[0]

        def observed_codes(masked):
            observed = codes.copy()
            observed[hidden[0] // 2 : (hidden[0] + hidden[2]) // 2] = masked
            return observed

        decode, image = self.decode_codes, image.reshape(image.shape[:2])
        return SimpleNamespace(
            observed_codes=observed_codes, decode=decode, image=image, hidden=hidden
        )


@pytest.fixture(scope="module")
def prior():
    model = tiny_pixelcnn(layers=1, attention_layers=0)
    return SlicePrior(
        model, BlockDecoder(), Provenance(Run("none"), POSITIONS, {"prior_hash": "a"})
    )


@pytest.mark.slow
def test_partial_grids_end_with_the_codes_of_sample(prior):
    options = {"temperature": 0.8, "seed": 3, "batch_size": 4}
    *_, grids = prior.partial_grids(3, (0.2, 0.8), rows=2, **options)
    images = prior.sample(3, (0.2, 0.8), **options)
    np.testing.assert_array_equal(grids["codes"], prior.decoder.encode_to_codes(images))
    assert grids["positions"].tolist() == POSITIONS[[0, 0, 2]].tolist()


def test_partial_grids_of_shared_noise_differ_by_position_alone(prior):
    *_, grids = prior.partial_grids(2, 0.5, shared_noise=True, batch_size=4)
    np.testing.assert_array_equal(grids["codes"][0], grids["codes"][1])
    *_, own = prior.partial_grids(2, 0.5, batch_size=4)
    assert (own["codes"][0] != own["codes"][1]).any()


@pytest.mark.slow
def test_values_of_a_condition_share_their_noise_and_are_rows_of_the_sheet(tmp_path):
    options = {"conditions": ("age",), "condition_variables": (Variable("age", 40, 80),)}
    model = tiny_pixelcnn(layers=1, attention_layers=0, **options)
    prior = SlicePrior(model, BlockDecoder(), Provenance(Run("none"), POSITIONS, {}))
    options = {"seed": 3, "guidance": 2.0, "batch_size": 4}
    samples = prior.samples(SamplingConfig(3, condition=("age=45,75",), **options))
    assert samples.groups == ("age 45", "age 75")
    assert samples.labels[3] == "age 75, position 0.20"
    metrics = write_samples(tmp_path / "out", samples, CropBox(0, 0, 8, 10))
    assert (metrics["conditions"], metrics["guidance"]) == ({"age": "45,75"}, 2.0)
    files = sorted(path.name for path in (tmp_path / "out" / "slices").iterdir())
    assert files[3] == "sample_0003_age_75_position_0.200.png"
    with np.load(tmp_path / "out" / "codes.npz") as file:
        codes = file["codes"]
    for row, age in ((slice(0, 3), 45), (slice(3, 6), 75)):
        images = prior.sample(3, conditions={"age": age}, **options)
        np.testing.assert_array_equal(prior.decoder.encode_to_codes(images), codes[row])
    assert (codes[:3] != codes[3:]).any()


def test_guidance_without_a_condition_is_refused():
    options = {"conditions": ("age",), "condition_variables": (Variable("age", 40, 80),)}
    model = tiny_pixelcnn(layers=1, attention_layers=0, **options)
    prior = SlicePrior(model, BlockDecoder(), Provenance(Run("none"), POSITIONS, {}))
    message = "`guidance` needs a `condition` to follow: the prior has age. Received: guidance=2 "
    with pytest.raises(InputError, match=message):
        prior.sample(1, guidance=2.0)
    with pytest.raises(InputError, match=message):
        next(prior.partial_grids(1, guidance=2.0))
    with pytest.raises(InputError, match=message):
        prior.inpaint(np.zeros((8, 10)), guidance=2.0)


def test_values_that_are_no_numbers_have_no_slope(tmp_path):
    groups = ("sex F", "sex M")
    samples = Samples([], np.zeros(4, "float32"), {"seed": 0, "temperature": 1}, groups=groups)
    with pytest.raises(InputError, match="`evaluate` compares several values of a numeric"):
        write_samples(tmp_path / "out", samples, CropBox(0, 0, 8, 10), object(), evaluate=True)


def test_samples_are_the_decoded_codes_of_the_sampler(prior):
    images = prior.sample(5, seed=3, batch_size=4)
    assert (images.shape, images.dtype) == ((5, 8, 10, 1), np.float32)
    positions = np.linspace(0.2, 0.8, 5, dtype="float32")
    batches = Sampler(prior.model).batches(positions, 3, 4)
    codes = np.concatenate([batch["codes"] for batch in batches])
    np.testing.assert_array_equal(prior.decoder.encode_to_codes(images), codes)
    np.testing.assert_array_equal(prior.sample(5, seed=3, batch_size=5), images)
    assert (prior.sample(5, seed=4, batch_size=5) != images).any()


def test_samples_carry_positions_and_metadata(prior):
    samples = prior.samples(SamplingConfig(3, (0.75, 0.25), batch_size=5))
    np.testing.assert_array_equal(samples.positions, np.float32([0.25, 0.75, 0.75]))
    limits = {"seed": 0, "temperature": 1.0, "top_k": None, "top_p": None}
    assert samples.metadata == {**limits, "prior_hash": "a"}
    (batch,) = samples.batches
    assert set(batch) == {"codes", "log_prob", "images"}


@pytest.mark.parametrize(
    "position", [0.5, np.float32(0.5), [0.5], (0.5,), np.array([0.5])], ids=repr
)
def test_position_is_a_number_or_a_sequence(prior, position):
    samples = prior.sample(5, position=position)
    np.testing.assert_array_equal(samples, prior.sample(5, position=[0.5, 0.5]))


def test_small_temperature_and_top_1_give_the_most_likely_codes(prior):
    images = prior.sample(5, position=0.5, temperature=1e-8)
    np.testing.assert_array_equal(images, prior.sample(5, position=0.5, top_k=1))
    codes = prior.decoder.encode_to_codes(images)
    assert (codes == codes[0]).all()
    logits = np.asarray(prior.model({"codes": codes, "position": np.full(5, 0.5, "float32")}))
    np.testing.assert_array_equal(codes, logits.argmax(axis=-1))


def test_inpainting_changes_the_masked_codes_only(prior):
    image = prior.sample(1, position=0.5)[0]
    inpainted = prior.inpaint(image, hidden=(4, 0, 4, 10), position=0.5, count=5, seed=1)
    assert inpainted.shape == (5, 8, 10, 1)
    np.testing.assert_array_equal(inpainted[:, :4], np.broadcast_to(image[:4], (5, 4, 10, 1)))
    assert len(np.unique(inpainted.reshape(5, -1), axis=0)) > 1
    again = prior.inpaint(image, hidden=(4, 0, 4, 10), position=0.5, count=5, seed=1)
    np.testing.assert_array_equal(inpainted, again)


def test_inpainting_estimates_the_position(prior):
    image = prior.sample(1, position=0.5)[0]
    samples = prior.inpainted(image, (4, 0, 4, 10), SamplingConfig(2))
    assert samples.positions[0] == samples.positions[1]
    assert samples.metadata["position"] in POSITIONS
    assert samples.metadata["hidden"] == (4, 0, 4, 10)
    np.testing.assert_array_equal(samples.original, image[..., 0])


def test_log_prob_is_the_sum_over_the_codes(prior):
    codes = np.random.default_rng(0).integers(0, CODES, (19, *GRID), "int32")
    positions = np.linspace(0, 1, 19, dtype="float32")
    images = prior.decoder.decode_codes(codes)
    nats = prior.log_prob(images, positions)
    assert (nats.shape, nats.dtype) == ((19,), np.float32)
    expected = np.asarray(prior.model.log_prob(codes, positions)).sum(axis=(1, 2))
    np.testing.assert_allclose(nats, expected, rtol=1e-4)
    np.testing.assert_allclose(
        prior.log_prob(images[:2], 0.5), prior.log_prob(images[:2], [0.5, 0.5]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "`count` .* Received: count=0"),
        ({"count": 1, "position": 0.1}, "`position` .* Received: position=0.1"),
        ({"count": 1, "seed": -1}, "`seed` .* Received: seed=-1"),
        ({"count": 1, "batch_size": 0}, "`batch_size` .* Received: batch_size=0"),
        ({"count": 1, "temperature": 0}, "`temperature` .* Received: temperature=0"),
        ({"count": 1, "top_k": 8}, "`top_k` .* Received: top_k=8"),
        ({"count": 1, "top_p": 2}, "`top_p` .* Received: top_p=2"),
    ],
    ids=str,
)
def test_invalid_sampling_arguments_raise(prior, arguments, message):
    with pytest.raises(InputError, match=message):
        prior.sample(**arguments)


@pytest.mark.parametrize(
    ("images", "position", "message"),
    [
        (np.zeros((8, 10, 1)), 0.5, r"`images` .* Received: images.shape=\(8, 10, 1\)"),
        (np.zeros((0, 8, 10, 1)), 0.5, r"`images` .* Received: images.shape=\(0, 8, 10, 1\)"),
        (np.full((1, 8, 10, 1), 255), 0.5, "`images` .* Received: values from 255 to 255"),
        (np.full((1, 8, 10, 1), np.nan), 0.5, "`images` .* Received: values from nan to nan"),
        (np.zeros((1, 8, 10, 1)), [0.5, 0.6], r"`position` .* position.shape=\(2,\)"),
        (np.zeros((1, 8, 10, 1)), 1.5, "`position` .* Received: position=1.5"),
    ],
    ids=str,
)
def test_invalid_slices_raise(prior, images, position, message):
    with pytest.raises(InputError, match=message):
        prior.log_prob(images, position)


def test_inpainting_compares_at_most_32_positions(prior, monkeypatch):
    many = Provenance(Run("none"), np.linspace(0, 1, 1000), {})
    sampled = []
    monkeypatch.setattr(
        "pixelcnn.slice_prior.most_likely_position",
        lambda sampler, observed, candidates, *noise: sampled.append(candidates) or 0.5,
    )
    SlicePrior(prior.model, prior.decoder, many).inpaint(np.zeros((8, 10)), (4, 0, 4, 10))
    (candidates,) = sampled
    assert len(candidates) == 32
    assert (candidates[0], candidates[-1]) == (0, 1)


def test_wrong_arguments_of_partial_grids_show_before_the_first_grid(prior):
    with pytest.raises(InputError, match="count=0"):
        prior.partial_grids(0)


def test_a_decoder_that_cannot_encode_still_samples(prior):
    decoder = SimpleNamespace(decode_codes=prior.decoder.decode_codes)
    decoding = SlicePrior(prior.model, decoder, prior.provenance)
    assert decoding.sample(1).shape == (1, 8, 10, 1)
    with pytest.raises(InputError, match="`decoder` must have a method `encode_to_codes`"):
        decoding.log_prob(np.zeros((1, 8, 10, 1)), 0.5)
    with pytest.raises(InputError, match="`decoder` must have a method `inpainting`"):
        decoding.inpaint(np.zeros((8, 10)))
    with pytest.raises(InputError, match=r"Received: position=\(0.1, 0.2\)"):
        decoding.inpainted(np.zeros((8, 10)), None, SamplingConfig(position=(0.1, 0.2)))


@pytest.mark.slow
def test_from_run_loads_the_vqvae_or_takes_the_decoder(linked, tmp_path):
    prior, vqvae = linked
    images = SlicePrior.from_run(prior).sample(2, position=0.5, seed=1, batch_size=2)
    assert images.shape == (2, 64, 64, 1)
    assert 0 <= images.min() < images.max() <= 1
    decoder = VQVAE.from_run(vqvae, "float32")
    moved = vqvae.path.rename(tmp_path / "moved")
    for given in (moved, str(moved), decoder):
        loaded = SlicePrior.from_run(prior, decoder=given)
        assert Path(loaded.provenance.run).name == ("vqvae" if given is decoder else "moved")
    again = loaded.sample(2, position=0.5, seed=1, batch_size=2)
    np.testing.assert_array_equal(again, images)
    half = VQVAE.from_run(moved, "mixed_bfloat16")
    used = SlicePrior.from_run(prior, decoder=half)
    assert (used.decoder.dtype_policy.name, half.dtype_policy.name) == ("float32", "mixed_bfloat16")
    again = used.sample(2, position=0.5, seed=1, batch_size=2)
    np.testing.assert_array_equal(again, images)
    decoder.file_hash = "0" * 64
    with pytest.raises(InputError, match="`decoder` is 000000000000"):
        SlicePrior.from_run(prior, decoder=decoder)


def test_conditions_enter_log_prob_and_inpainting():
    options = {"conditions": ("age",), "condition_variables": (Variable("age", 40, 80),)}
    model = tiny_pixelcnn(layers=1, attention_layers=0, **options)
    prior = SlicePrior(model, BlockDecoder(), Provenance(Run("none"), POSITIONS, {}))
    codes = np.random.default_rng(0).integers(0, CODES, (3, *GRID), "int32")
    images = prior.decoder.decode_codes(codes)
    log_prob = prior.log_prob(images, 0.5, {"age": 75})
    inputs = model.with_conditions(np.full(3, 0.5), {"age": 75})
    expected = np.asarray(model.log_prob(codes, inputs)).sum(axis=(1, 2))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    assert np.abs(log_prob - prior.log_prob(images, 0.5)).max() > 1e-3
    # Guidance, so that a hardly trained prior samples other codes.
    options = {"seed": 1, "guidance": 100.0}
    young, old = (
        prior.inpaint(images[0], (4, 0, 4, 10), 0.5, 3, conditions={"age": age}, **options)
        for age in (45, 75)
    )
    assert (young != old).any()


def test_validation_slices_are_scored_with_the_conditions_of_their_subjects():
    variables = (Variable("age", 40, 80),)
    model = tiny_pixelcnn(
        layers=1, attention_layers=0, conditions=("age",), condition_variables=variables
    )
    codes = np.random.default_rng(0).integers(0, CODES, (2, *GRID), "int32")
    split = SimpleNamespace(codes=codes, positions=POSITIONS[:2], subjects=np.array(["a", "b"]))
    grids = SimpleNamespace(vqvae_hash="v", vqvae_run="", splits={"validate": split})
    prior = SlicePrior(
        model, BlockDecoder(), Provenance(Run("none"), POSITIONS, {"vqvae_hash": "v"})
    )
    table = {"a": {"age": "45"}, "b": {"age": "75"}}
    scorer = Scorer(prior, grids, table)
    inputs = add_subjects(variables, split.positions, table, split.subjects)
    expected = -np.asarray(model.log_prob(codes, inputs))
    np.testing.assert_allclose(scorer.reference.reference_nats, expected, rtol=1e-4, atol=1e-5)
    unknown = Scorer(prior, grids).reference.reference_nats
    assert np.abs(scorer.reference.reference_nats - unknown).max() > 1e-3
