import math
import re

import keras
import numpy as np
import pytest
from helpers import (
    assert_bit_equal,
    pictures,
    python,
    reference_scores,
    scatter_codes,
    tiny_config,
    tiny_model,
    tiny_training,
    values,
)
from keras import ops

from brainslices.data.batches import SliceBatches
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.runs.run import Run
from brainslices.training.optimizer import compile_model
from vqvae.model import VQVAE
from vqvae.training import build_model

both = pytest.mark.parametrize("codebook", ["ema", "gradient"])


pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.mark.parametrize("channels", [(8, 16), (4, 8, 8)])
def test_shapes_from_image_to_codes_and_back(channels):
    model, images = tiny_model(channels=channels), pictures(3)
    grid = model.code_grid_shape
    latents = model.encode(images)
    codes = model.encode_to_codes(images)
    assert latents.shape == (3, *grid, 4)
    assert (codes.shape, keras.backend.standardize_dtype(codes.dtype)) == ((3, *grid), "int32")
    assert 0 <= np.min(codes) <= np.max(codes) < 32
    assert model.quantizer.lookup(codes).shape == latents.shape
    for out in (
        model(images)["reconstruction"],
        model.decode_codes(codes),
        model.reconstruct(images),
    ):
        assert out.shape == images.shape
        assert keras.backend.standardize_dtype(out.dtype) == "float32"


@pytest.mark.parametrize(
    "crop", [(2, 3, 16, 12), (-4, -6, 32, 32), (0, 0, 24, 20), (12, -3, 16, 16), (-8, 10, 16, 24)]
)
def test_cut_and_paste_are_those_of_the_crop_box(crop):
    model, images = tiny_model(crop=crop), pictures(2)
    box = CropBox(*crop)
    np.testing.assert_array_equal(model.cut(images), box.cut(images))
    crops = pictures(2, crop[2:], seed=1)
    np.testing.assert_array_equal(model.paste(crops), box.paste(crops, (24, 20)))


@both
def test_reconstruction_is_the_decoded_codes_and_the_clipped_call(codebook):
    model, images = scatter_codes(tiny_model(codebook=codebook)), pictures(3)
    codes = model.encode_to_codes(images)
    assert len(np.unique(codes)) > 8
    reconstructed = np.asarray(model.reconstruct(images))
    np.testing.assert_array_equal(reconstructed, model.decode_codes(codes))
    np.testing.assert_allclose(
        reconstructed, np.clip(model(images)["reconstruction"], 0, 1), atol=1e-5
    )
    np.testing.assert_array_equal(model.decode(model.quantizer.lookup(codes)), reconstructed)


def test_reconstructions_are_in_the_unit_interval_and_black_around_the_crop():
    model = scatter_codes(tiny_model())
    for weight in model.decoder.weights:
        weight.assign(weight * 3)
    reconstructed = np.asarray(model.reconstruct(pictures(4)))
    assert (reconstructed.min(), reconstructed.max()) == (0, 1)  # both clips were needed
    inside = CropBox(*model.crop).paste(np.ones((1, *model.crop[2:], 1)), (24, 20))[0] > 0
    assert not inside.all()
    assert (reconstructed[:, ~inside] == 0).all()
    assert reconstructed[:, inside].any()


def test_pixels_around_the_crop_do_not_affect_the_codes():
    model, images = scatter_codes(tiny_model()), pictures(2)
    black = CropBox(*model.crop).paste(model.cut(images).numpy(), (24, 20))
    assert (black != images).any()
    np.testing.assert_array_equal(model.encode_to_codes(images), model.encode_to_codes(black))


@pytest.mark.slow
def test_intensities_are_standardised_inside():
    """With twice the mean and standard deviation, images twice as bright give the same codes."""
    model, images = scatter_codes(tiny_model()), pictures(2) / 2
    config = model.get_config()
    bright_model = VQVAE.from_config({**config, "mean": 2 * model.mean, "std": 2 * model.std})
    bright_model.build((None, 24, 20, 1))
    bright_model.set_weights(model.get_weights())
    bright = bright_model(2 * images)["reconstruction"]
    np.testing.assert_allclose(2 * model(images)["reconstruction"], bright, atol=1e-5)


def test_bits_per_pixel_count_every_pixel_of_the_source():
    model = tiny_model(num_embeddings=32)
    rows, cols = model.code_grid_shape
    assert math.isclose(model.bits_per_pixel_raw, rows * cols * 5 / (24 * 20))


@pytest.mark.parametrize(("name", "value"), [("std", 0.0), ("crop", (0, 0, 10, 24))])
def test_wrong_arguments_are_refused(name, value):
    config = tiny_model().get_config()
    with pytest.raises(InputError, match=re.escape(f"{name}={value}")):
        VQVAE.from_config({**config, name: value})


def test_images_of_another_size_rank_type_or_range_are_refused():
    model = tiny_model()
    for verb in (model.encode, model.encode_to_codes, model.reconstruct):
        for shape in [(24, 20), (24, 20, 1), (2, 24, 20), (2, 20, 24, 1), (2, 24, 20, 3)]:
            with pytest.raises(InputError, match="`images`.*24, 20, 1") as caught:
                verb(np.zeros(shape, "float32"))
            assert f"images.shape={shape}" in str(caught.value)
        for value in (255.0, -0.5, np.nan):
            with pytest.raises(InputError, match=rf"`images` .*\[0, 1\].*{value:g}"):
                verb(np.full((2, 24, 20, 1), value, "float32"))
        with pytest.raises(InputError, match="images.dtype=uint8"):
            verb(np.zeros((2, 24, 20, 1), "uint8"))


def test_codes_and_latents_of_another_shape_are_refused():
    model = tiny_model()
    with pytest.raises(InputError, match=r"`codes`.*codes.shape=\(2, 1, 1\)"):
        model.decode_codes(np.zeros((2, 1, 1), "int32"))
    with pytest.raises(InputError, match=r"`quantized`.*quantized.shape=\(4, 6, 4\)"):
        model.decode(np.zeros((4, 6, 4), "float32"))


@pytest.mark.parametrize("codes", [-1, 16, 0.0])
def test_what_is_no_code_is_refused(codes):
    model = tiny_model(num_embeddings=16)
    grids = np.full((2, *model.code_grid_shape), codes)
    with pytest.raises(InputError, match="`codes` must be integers from 0 to 15"):
        model.decode_codes(grids)


def test_stored_codes_decode_as_those_of_the_model():
    """Files hold codes as uint16."""
    model = scatter_codes(tiny_model())
    codes = np.asarray(model.encode_to_codes(pictures(2)))
    decoded = model.decode_codes(codes.astype("uint16"))
    np.testing.assert_array_equal(decoded, model.decode_codes(codes))


def test_reconstruct_refuses_batches_of_none():
    model = tiny_model()
    for size in (0, -1):
        with pytest.raises(InputError, match=f"`batch_size` .*{size}"):
            model.reconstruct(pictures(2), batch_size=size)


def test_reconstruct_processes_any_number_of_images_in_batches(monkeypatch):
    model, images = scatter_codes(tiny_model()), pictures(7)
    expected = np.asarray(model.decode_codes(model.encode_to_codes(images)))
    sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda batch: sizes.append(len(batch)) or encode(batch))
    for count, expected_sizes in ((0, []), (1, [1]), (7, [3, 3, 1])):
        sizes.clear()
        reconstructed = model.reconstruct(images[:count], batch_size=3)
        assert (type(reconstructed), reconstructed.dtype) == (np.ndarray, np.float32)
        assert sizes == expected_sizes
        np.testing.assert_allclose(reconstructed, expected[:count], atol=1e-5)


def test_from_run_takes_a_string_a_path_or_a_run(trained_vqvae, phantom_archive):
    images = phantom_archive.load(phantom_archive.indices("test"))
    one, *others = (
        VQVAE.from_run(run).reconstruct(images)
        for run in (str(trained_vqvae), trained_vqvae, Run(trained_vqvae))
    )
    for other in others:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("codebook", "l2_normalized"), [("ema", False), ("gradient", False), ("ema", True)]
)
def test_saved_and_loaded_model_is_the_same_to_the_last_bit(tmp_path, codebook, l2_normalized):
    model = scatter_codes(tiny_model(codebook=codebook, l2_normalized=l2_normalized))
    rng, images = np.random.default_rng(0), pictures(4)
    model.set_weights([weight + 0.1 * rng.random(weight.shape) for weight in model.get_weights()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.get_config() == model.get_config()
    assert_bit_equal(values(model.weights), values(loaded.weights))
    np.testing.assert_array_equal(model.encode_to_codes(images), loaded.encode_to_codes(images))
    np.testing.assert_array_equal(model.reconstruct(images), loaded.reconstruct(images))


@pytest.mark.long
@pytest.mark.slow
def test_saved_model_loads_where_only_the_package_is_imported(tmp_path):
    model, images = scatter_codes(tiny_model()), pictures(4)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    ran = python(
        "-c",
        f"""
import keras, numpy as np
from vqvae import VQVAE
model = keras.saving.load_model("{tmp_path}/model.keras")
assert isinstance(model, VQVAE)
np.save("{tmp_path}/out.npy", model.reconstruct(np.load("{tmp_path}/images.npy")))
""",
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.reconstruct(images))


def reference_loss(model, images):
    """The reconstruction loss of the three terms, in NumPy."""
    config, cut = model.config, CropBox(*model.crop).cut
    originals, outputs = (
        cut(images)[..., 0],
        cut(np.asarray(model(images)["reconstruction"]))[..., 0],
    )
    error = (originals - outputs) / model.std
    scores = [
        reference_scores(first, second)
        for first, second in zip(originals, np.clip(outputs, 0, 1), strict=True)
    ]
    whole, foreground = np.mean([score[:2] for score in scores], axis=0)
    ssim = (1 - config.foreground_share) * whole + config.foreground_share * foreground
    return (
        config.l1_weight * np.abs(error).mean()
        + config.mse_weight * np.square(error).mean()
        + config.ssim_weight * (1 - ssim)
    )


@pytest.mark.parametrize(
    "weights", [(1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 3, 0), (0, 0, 3, 1), (0.5, 1, 2, 0.7)]
)
def test_reconstruction_loss_is_the_weighted_sum_of_its_terms(weights):
    names = ("l1_weight", "mse_weight", "ssim_weight", "foreground_share")
    model = tiny_model(**dict(zip(names, map(float, weights), strict=True)))
    images = pictures(3)
    images[:, :12] *= images[:, :12] > 0.5  # some background
    loss = model.compute_loss(images, None, model(images), training=True)
    quantizer_loss = sum(float(value) for value in model.losses)
    np.testing.assert_allclose(
        float(loss) - quantizer_loss, reference_loss(model, images), rtol=1e-4
    )


@pytest.mark.slow
def test_ssim_is_computed_in_evaluation_only():
    model, images = tiny_model(), pictures(8)
    compile_model(model, tiny_training(), 4)
    history = model.fit(images, batch_size=4, epochs=2, validation_data=(images,), verbose=0)
    train = {"loss", "reconstruction_loss", "quantizer_loss", "perplexity", "codebook_usage"}
    scores = {"val_ssim", "val_ssim_foreground"}
    assert set(history.history) == train | {f"val_{key}" for key in train} | scores
    assert all(len(values) == 2 for values in history.history.values())


@pytest.mark.slow
def test_validation_scores_are_those_of_scikit_image(phantom_archive):
    rows = phantom_archive.indices("train")
    model = build_model(phantom_archive, rows, tiny_config(), seed=0)
    compile_model(model, tiny_training(), 4)
    rows = phantom_archive.indices("validate")
    batches = SliceBatches(phantom_archive, rows, batch_size=5)  # the last is a partial one
    scores = model.evaluate(batches, verbose=0, return_dict=True)
    images = phantom_archive.load(rows)
    outputs = np.asarray(model.reconstruct(images))
    pairs = zip(images[..., 0], outputs[..., 0], strict=True)
    whole, foreground = np.mean([reference_scores(*pair)[:2] for pair in pairs], axis=0)
    np.testing.assert_allclose(scores["ssim"], whole, atol=1e-4)
    np.testing.assert_allclose(scores["ssim_foreground"], foreground, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codebook", "policy"), [("ema", "mixed_float16"), ("gradient", "mixed_bfloat16")]
)
def test_mixed_policies_train_with_quantiser_and_losses_in_float32(codebook, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    model, images = tiny_model(codebook=codebook, rotation_trick=True), pictures(8)
    compile_model(model, tiny_training(), 4)
    assert keras.backend.standardize_dtype(model.encode(images).dtype) == policy[6:]
    assert keras.backend.standardize_dtype(model(images)["reconstruction"].dtype) == "float32"
    assert {variable.dtype for variable in model.quantizer.weights} <= {"float32", "uint32"}
    history = model.fit(images, batch_size=4, validation_data=(images,), verbose=0).history
    assert all(np.isfinite(history[key]).all() for key in history)


@pytest.mark.slow
@both
def test_training_fits_one_image(codebook):
    model = scatter_codes(
        tiny_model(codebook=codebook, mse_weight=1.0, ssim_weight=0.0, l1_weight=0.0)
    )
    compile_model(model, tiny_training(schedule="constant", warmup_steps=0, learning_rate=5e-3), 1)
    ramp = np.linspace(0, 1, 24, dtype="float32")[None, :, None, None]
    image, losses = np.tile(ramp, (1, 1, 20, 1)), []
    for steps in (1, 58, 1):  # an epoch each: one for every step would take longer
        images = np.repeat(image, 8 * steps, axis=0)
        losses += model.fit(images, batch_size=8, verbose=0).history["reconstruction_loss"]
    assert losses[-1] < 0.25 * losses[0]


def test_gradients_reach_the_encoder_through_the_codes():
    tf = pytest.importorskip("tensorflow")
    model, images = scatter_codes(tiny_model()), pictures(2)
    with tf.GradientTape() as tape:
        value = ops.sum(ops.square(model(images)["reconstruction"]))
    gradients = tape.gradient(value, model.encoder.trainable_variables)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_expected_codes_that_are_certain_decode_as_these_codes():
    model = scatter_codes(tiny_model())
    codes = model.encode_to_codes(pictures(2))
    certain = ops.one_hot(codes, model.config.num_embeddings)
    expected = model.decode_codes(codes)
    np.testing.assert_allclose(model.decode_expected(certain), expected, atol=1e-5)


@pytest.mark.slow
def test_slices_without_foreground_do_not_count_in_the_foreground_score():
    model, images = tiny_model(), pictures(4)
    compile_model(model, tiny_training(), 1)
    expected = model.evaluate(images, batch_size=4, verbose=0, return_dict=True)
    black = np.concatenate([images, np.zeros_like(images[:2])])
    scores = model.evaluate(black, batch_size=4, verbose=0, return_dict=True)
    assert scores["ssim_foreground"] == pytest.approx(expected["ssim_foreground"], abs=1e-5)
    assert scores["ssim"] != pytest.approx(expected["ssim"], abs=1e-3)
