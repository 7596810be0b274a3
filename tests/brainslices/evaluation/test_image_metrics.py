"""The reported scores, their floors and intervals."""

import math

import numpy as np
import pytest
from helpers import reference_scores
from PIL import Image
from skimage.filters import gaussian
from skimage.metrics import peak_signal_noise_ratio

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.phantom import phantom_slices
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import (
    PSNR_CEILING_DB,
    SCORES,
    bits_per_pixel_raw,
    floor_scores,
    mean_image,
    reconstruction_scores,
    score_slices,
    similarity_map,
    subject_bootstrap_interval,
    summarize,
)


@pytest.fixture(scope="module")
def heads():
    """Two slices each of three phantom subjects."""
    positions = np.array([0.4, 0.6])
    slices = [phantom_slices(subject, positions, (64, 64), seed=0) for subject in range(3)]
    return np.concatenate(slices).astype("float32") / 255


def blurred(images):
    return np.stack([gaussian(image, 1.5) for image in images]).astype("float32")


def test_scores_agree_with_scikit_image(heads):
    original, other = heads[0], blurred(heads)[0]
    scores = reconstruction_scores(original, other)
    mean, foreground, full = reference_scores(original, other)
    assert scores["ssim"] == pytest.approx(mean, abs=1e-12)
    assert scores["ssim_foreground"] == pytest.approx(foreground, abs=1e-12)
    assert scores["psnr_db"] == pytest.approx(peak_signal_noise_ratio(original, other), abs=1e-4)
    np.testing.assert_allclose(similarity_map(original, other), full, atol=1e-12)


def test_foreground_score_ignores_how_large_the_background_is(heads):
    wide = np.pad(heads, [(0, 0), (30, 30), (30, 30)])
    for narrow_head, wide_head in zip(heads, wide, strict=True):
        narrow = reconstruction_scores(narrow_head, gaussian(narrow_head, 1.5))
        broad = reconstruction_scores(wide_head, gaussian(wide_head, 1.5))
        assert broad["ssim_foreground"] == pytest.approx(narrow["ssim_foreground"], abs=2e-3)
        assert broad["ssim"] > narrow["ssim"] + 0.02


def test_equal_images_score_one_and_a_finite_psnr(heads):
    scores = reconstruction_scores(heads[0], heads[0])
    assert scores == {"ssim": 1.0, "ssim_foreground": 1.0, "psnr_db": PSNR_CEILING_DB}
    assert round(PSNR_CEILING_DB, 2) == 58.92


def test_images_are_clipped_before_scoring(heads):
    stretched = 3 * heads[0] - 1
    assert reconstruction_scores(heads[0], stretched) == reconstruction_scores(
        heads[0], np.clip(stretched, 0, 1)
    )


def test_empty_foreground_has_no_foreground_score():
    black = np.zeros((16, 16), "float32")
    assert math.isnan(reconstruction_scores(black, black)["ssim_foreground"])


@pytest.mark.parametrize(
    ("original", "reconstruction", "message"),
    [
        (np.zeros((16, 16)), np.zeros((16, 12)), r"`original`.*\(16, 16\) and \(16, 12\)"),
        (np.zeros((16, 10)), np.zeros((16, 10)), r"`original`.*\(16, 10\)"),
        (np.zeros((16, 16), "uint8"), np.zeros((16, 16)), r"`original` .*uint8 of shape"),
        (np.zeros((16, 16)), np.zeros((1, 16, 16)), r"`reconstruction` .*\(1, 16, 16\)"),
        (np.zeros((16, 16)), np.full((16, 16), np.nan), r"`reconstruction`.*256 values"),
    ],
)
def test_unusable_images_are_refused(original, reconstruction, message):
    with pytest.raises(InputError, match=message):
        reconstruction_scores(original, reconstruction)


def test_many_slices_score_as_one_by_one_and_in_order(heads):
    many = np.concatenate([heads] * 12)[..., None]
    others = np.concatenate([blurred(heads)] * 12)[..., None]
    scores = score_slices(many, others)
    for name in SCORES:
        expected = [reconstruction_scores(*pair)[name] for pair in zip(many, others, strict=True)]
        np.testing.assert_array_equal(scores[name], expected)


def test_originals_are_read_when_they_are_scored(heads):
    class Originals:
        def __len__(self):
            return 90

        def __getitem__(self, row):
            if row == 40:
                raise InputError("slice 40 is corrupt")
            return heads[row % len(heads)]

    with pytest.raises(InputError, match="slice 40"):
        score_slices(Originals(), np.concatenate([heads] * 15))


@pytest.mark.parametrize("count", [0, 5, 7])
def test_number_of_reconstructions_must_match(heads, count):
    others = np.zeros((count, 64, 64), "float32")
    with pytest.raises(InputError, match=f"`reconstructions`.*{count} for 6"):
        score_slices(heads, others)


def test_floors_are_the_scores_of_their_images(heads):
    mean = heads.mean(axis=0)
    floors = floor_scores(heads, mean)
    assert list(floors) == ["floor_black", "floor_mean_image"]
    for k, head in enumerate(heads):
        for name, image in (("floor_black", np.zeros_like(head)), ("floor_mean_image", mean)):
            expected = reconstruction_scores(head, image)
            assert {key: floors[name][key][k] for key in SCORES} == expected
    assert floors["floor_black"]["ssim_foreground"].max() < 0.1
    assert (floors["floor_mean_image"]["ssim"] > floors["floor_black"]["ssim"]).all()


def test_mean_image_is_of_the_training_split_alone(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (7, 16, 24), dtype="uint8")
    splits = ["train"] * 5 + ["validate", "test"]
    slices = [
        (SliceRecord(f"slice_{k}", f"subject_{k}", split, 0.5, ""), image)
        for k, (split, image) in enumerate(zip(splits, images, strict=True))
    ]
    archive = write_archive(tmp_path / "archive", slices, intensity_rule="none")
    monkeypatch.setattr("brainslices.evaluation.image_metrics.CHUNK", 2)
    mean = mean_image(archive)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, images[:5].mean(axis=0) / 255, atol=1e-6)


def test_interval_of_one_subject_has_no_width():
    assert subject_bootstrap_interval([0.2, 0.4, 0.9], ["a"] * 3, seed=0) == pytest.approx(
        (0.5,) * 3
    )


def test_interval_of_equal_subjects_has_no_width():
    values, subjects = [0.2, 0.8, 0.8, 0.2], ["a", "a", "b", "b"]
    assert subject_bootstrap_interval(values, subjects, seed=0) == pytest.approx((0.5,) * 3)


def test_interval_agrees_with_resampling_by_hand():
    generator = np.random.default_rng(5)
    subjects = np.repeat(list("abcdefgh"), [3, 1, 4, 2, 6, 5, 3, 2])
    values = generator.random(len(subjects)) + (subjects > "d")
    mean, low, high = subject_bootstrap_interval(values, subjects, seed=1)
    resampled = []
    for _ in range(5000):
        drawn = generator.choice(np.unique(subjects), 8)
        resampled.append(np.concatenate([values[subjects == name] for name in drawn]).mean())
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.03)


def test_interval_is_wider_by_subject_when_slices_of_one_agree():
    values = np.repeat(np.random.default_rng(2).random(10), 20)
    slices = np.arange(200)
    _, low, high = subject_bootstrap_interval(values, slices // 20, seed=0)
    _, slice_low, slice_high = subject_bootstrap_interval(values, slices, seed=0)
    # Twenty equal slices a subject count as one: the interval is sqrt(20) times as wide.
    assert (high - low) / (slice_high - slice_low) == pytest.approx(math.sqrt(20), rel=0.15)


def test_interval_is_repeatable_and_contains_the_mean():
    values, subjects = np.random.default_rng(3).random(40), np.arange(40) // 4
    first = subject_bootstrap_interval(values, subjects, seed=7)
    assert first == subject_bootstrap_interval(values, subjects, seed=7)
    assert first != subject_bootstrap_interval(values, subjects, seed=8)
    assert first[1] < first[0] < first[2]


def test_interval_leaves_out_nan():
    values, subjects = [0.5, np.nan, 0.7, np.nan], ["a", "a", "b", "c"]
    expected = subject_bootstrap_interval([0.5, 0.7], ["a", "b"], seed=0)
    assert subject_bootstrap_interval(values, subjects, seed=0) == expected
    assert np.isnan(subject_bootstrap_interval([np.nan], ["a"], seed=0)).all()


def test_interval_refuses_unequal_lengths():
    with pytest.raises(InputError, match=r"`values` and `subjects`.*\(3,\) and \(2,\)"):
        subject_bootstrap_interval([1, 2, 3], ["a", "b"], seed=0)


def test_summary_has_the_documented_keys_and_values(heads):
    subjects = np.repeat(["one", "two", "three"], 2)
    scores = score_slices(heads, blurred(heads))
    summary = summarize(scores, floor_scores(heads, heads.mean(axis=0)), subjects)
    intervals = {name + suffix for name in SCORES for suffix in ("", "_low", "_high")}
    floors = {"floor_black", "floor_mean_image"}
    assert set(summary) == intervals | floors | {"subjects", "slices"}
    assert all(set(summary[floor]) == intervals for floor in floors)
    assert (summary["subjects"], summary["slices"]) == (3, 6)
    for part in (summary, *(summary[floor] for floor in floors)):
        for name in SCORES:
            assert part[f"{name}_low"] <= part[name] <= part[f"{name}_high"]
    assert summary["ssim"] == pytest.approx(scores["ssim"].mean())


@pytest.mark.parametrize(
    ("grid", "num_embeddings", "image", "bits"),
    [
        ((32, 32), 512, (256, 256), 0.140625),
        ((26, 22), 512, (256, 256), 0.0785522),
        ((8, 8), 1, (64, 64), 0),
    ],
)
def test_raw_rate_counts_source_pixels(grid, num_embeddings, image, bits):
    assert bits_per_pixel_raw(grid, num_embeddings, image) == pytest.approx(bits, abs=1e-6)


@pytest.mark.real_data
def test_floor_on_real_slices(oasis_pngs):
    """The known score of a black image on the validation subjects."""
    files = sorted((oasis_pngs / "keras_png_slices_validate").iterdir())[::7]
    heads = np.stack([np.asarray(Image.open(file)) for file in files]).astype("float32") / 255
    black = floor_scores(heads, heads.mean(axis=0))["floor_black"]
    assert black["ssim"].mean() == pytest.approx(0.664, abs=0.003)
    assert black["ssim_foreground"].mean() == pytest.approx(0.002, abs=0.001)
