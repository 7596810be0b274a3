"""Scores of samples: each against a reference, a property or real slices."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
from scipy.ndimage import gaussian_filter

from brainslices.data.archive import SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.phantom import phantom_slices
from brainslices.errors import InputError
from brainslices.evaluation import nearest
from brainslices.evaluation.density_coverage import density_and_coverage
from brainslices.evaluation.frechet import features, frechet_distance
from brainslices.evaluation.generation_metrics import (
    check_comparable,
    evaluate_samples,
    foreground_area_difference,
    intensity_quantile_difference,
)
from brainslices.evaluation.image_metrics import reconstruction_scores
from brainslices.evaluation.matching import match_rows, sample_pairs
from brainslices.evaluation.ms_ssim import ms_ssim, pairwise_ms_ssim
from brainslices.evaluation.nearest import NearestTrain


@pytest.fixture(scope="module")
def heads():
    """Two phantom slices at one position, float32 of shape (2, 176, 176)."""
    slices = [phantom_slices(subject, np.array([0.5]), (176, 176), seed=0) for subject in range(2)]
    return np.concatenate(slices).astype("float32") / 255


def split_images(archive, split):
    return archive.load(archive.indices(split))[..., 0]


def with_noise(images, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 1).astype("float32")


@pytest.mark.parametrize("side", [176, 187])
def test_ms_ssim_is_tensorflows(heads, side):
    import tensorflow as tf

    grown = np.pad(heads, ((0, 0), (0, side - 176), (0, side - 176)), mode="edge")
    for first, second in [(grown[0], grown[1]), (grown[0], with_noise(grown, 0.1)[0])]:
        expected = tf.image.ssim_multiscale(first[..., None], second[..., None], max_val=1.0)
        assert ms_ssim(first, second) == pytest.approx(float(expected), abs=1e-4)  # in float32


def test_ms_ssim_has_the_properties_of_a_similarity(heads):
    first, second = heads
    assert ms_ssim(first, first) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(first, second) == ms_ssim(second, first)
    falling = [ms_ssim(first, with_noise(first, deviation)) for deviation in (0, 0.02, 0.1, 0.4)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0.6
    assert ms_ssim(first, 1 - first) == 0


def test_ms_ssim_of_one_scale_is_ssim(heads):
    small, other = heads[:, 70:91, 70:91]
    assert ms_ssim(small, other) == pytest.approx(
        reconstruction_scores(small, other)["ssim"], abs=1e-9
    )


def test_ms_ssim_of_too_small_images_is_refused():
    with pytest.raises(
        InputError, match=r"`first` and `second`.*Received: \(10, 40\) and \(10, 40"
    ):
        ms_ssim(np.zeros((10, 40)), np.zeros((10, 40)))


def test_pairs_are_at_one_position_and_of_two_subjects(heads):
    positions = [0.5, 0.5 + 1 / 64, 0.9, 0.1]
    np.testing.assert_array_equal(sample_pairs(positions), [[0, 1]])
    subjects = ["a", "a", "b", "c"]
    pairs = sample_pairs([0.5, 0.2, 0.5, 0.2], subjects)
    assert sorted(map(tuple, pairs)) == [(0, 2), (1, 3)]
    with pytest.raises(InputError, match="Received: 4 slices"):
        sample_pairs(positions, subjects)
    images = np.concatenate([heads, heads])
    assert pairwise_ms_ssim(images, [[0, 1]]) == pytest.approx([ms_ssim(*heads)])
    assert pairwise_ms_ssim(images, pairs) == pytest.approx([1, 1])


def test_some_of_many_pairs_are_sampled_by_seed():
    few = [sample_pairs(np.zeros(50), seed=seed) for seed in (0, 0, 1)]
    assert {pairs.shape for pairs in few} == {(1000, 2)}
    np.testing.assert_array_equal(few[0], few[1])
    assert (few[0] != few[2]).any()


def test_nearest_training_slice_is_that_of_brute_force(phantom_archive, monkeypatch):
    monkeypatch.setattr(nearest, "CHUNK", 7)
    images = split_images(phantom_archive, "test")[::2]
    rows, scores = NearestTrain(phantom_archive)(images)
    train = phantom_archive.indices("train")
    for image, row, score in zip(images, rows, scores, strict=True):
        reported = [
            reconstruction_scores(phantom_archive.load([other])[0], image)["ssim"]
            for other in train
        ]
        assert row == train[np.argmax(reported)]
        assert score == pytest.approx(max(reported), abs=1e-9)
    assert (rows.dtype, scores.dtype) == ("int64", "float64")


def test_memorised_slices_are_found(phantom_archive):
    train = phantom_archive.indices("train")[[3, 17, 30]]
    rows, scores = NearestTrain(phantom_archive)(phantom_archive.load(train)[..., 0])
    np.testing.assert_array_equal(rows, train)
    np.testing.assert_allclose(scores, 1)


def test_nearest_of_bright_and_black_images(phantom_archive):
    images = np.stack([np.zeros((64, 64)), np.ones((64, 64))]).astype("float32")
    rows, scores = NearestTrain(phantom_archive)(images)
    for image, row, score in zip(images, rows, scores, strict=True):
        reported = reconstruction_scores(phantom_archive.load([row])[0], image)["ssim"]
        assert score == pytest.approx(reported, abs=1e-9)


def test_images_of_another_size_are_refused(phantom_archive):
    with pytest.raises(InputError, match=r"`images`.*shape \(2, 32, 64\)"):
        NearestTrain(phantom_archive)(np.zeros((2, 32, 64), "float32"))


def test_features_are_fixed_and_see_layout_and_texture(phantom_archive):
    images = split_images(phantom_archive, "train")
    plain = features(images)
    assert plain.shape == (40, 64)
    assert plain.dtype == "float64"
    np.testing.assert_array_equal(plain, features(images))
    # Others would not be comparable with the distances that were published.
    rows, cols = np.mgrid[:64, :64] / 64
    waves = 0.5 + 0.5 * np.sin(9 * cols) * np.cos(7 * rows)
    expected = [-0.740010, -0.153111, -0.007846, 0.274059, -0.794161, -0.969901, -0.589643]
    np.testing.assert_allclose(features(waves[None])[0, :56:8], expected, atol=1e-5)
    np.testing.assert_allclose(features(images[5:6]), plain[5:6])
    moved = features(np.roll(images, 6, axis=2))
    sharper = features(with_noise(images, 0.05))
    assert np.abs(moved - plain)[:, :24].max() > 0.1
    assert np.abs(sharper - plain)[:, 24:34].max() > 0.1


def test_features_of_small_images_are_refused():
    with pytest.raises(InputError, match=r"`images`.*shape \(2, 63, 70\)"):
        features(np.zeros((2, 63, 70)))


def test_frechet_distance_of_diagonal_gaussians():
    generator = np.random.default_rng(0)
    # Whitened, so that the sample moments are exactly the given ones.
    white = np.linalg.qr(generator.standard_normal((400, 6)))[0]
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    deviations, others = generator.uniform(0.1, 2, (2, 6))
    shift = generator.standard_normal(6)
    expected = np.sum(shift**2) + np.sum((deviations - others) ** 2)
    distance = frechet_distance(white * deviations, white * others + shift)
    assert distance == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_that_by_the_matrix_square_root():
    generator = np.random.default_rng(1)
    mixtures = generator.standard_normal((2, 12, 12))
    first, second = (generator.standard_normal((300, 12)) @ mixture for mixture in mixtures)
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other).real
    shift = first.mean(axis=0) - second.mean(axis=0)
    expected = shift @ shift + np.trace(one + other - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_few_rows_is_finite_and_zero_for_equal_sets():
    few = np.random.default_rng(2).standard_normal((3, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 1) == pytest.approx(64, abs=1e-5)
    with pytest.raises(InputError, match=r"`first` and `second`.*shapes \(1, 64\) and \(3, 64"):
        frechet_distance(few[:1], few)


def test_quantiles_of_a_known_image():
    first, second = np.zeros((2, 1, 10, 10), "float32")
    first[0, :5] = np.linspace(0.5, 1, 50).reshape(5, 10)
    second[0, :2] = 0.5
    # The quantiles of 0.5 .. 1 are 0.525 .. 0.975.
    assert intensity_quantile_difference(first, second) == pytest.approx(0.25)
    assert foreground_area_difference(first, second) == pytest.approx(0.3)


def test_differences_of_sets():
    first = np.zeros((2, 10, 10), "float32")
    first[:, :4] = 0.5
    second = np.zeros((3, 10, 10), "float32")
    second[:, :6] = 0.8
    assert foreground_area_difference(first, second) == pytest.approx(0.2)
    assert intensity_quantile_difference(first, second) == pytest.approx(0.3)
    assert intensity_quantile_difference(first, first) == 0
    assert np.isnan(intensity_quantile_difference(first, np.zeros((1, 10, 10))))


def test_matched_rows_are_at_the_position_and_rotate_over_subjects(phantom_archive):
    rows = match_rows(phantom_archive, "train", [3 / 7] * 5 + [0.55] * 5, seed=3)
    records = [phantom_archive.index[row] for row in rows]
    assert [record.position for record in records] == pytest.approx([3 / 7] * 5 + [4 / 7] * 5)
    assert len({record.subject for record in records[:5]}) == 5
    assert len({record.subject for record in records[5:]}) == 5
    np.testing.assert_array_equal(
        rows, match_rows(phantom_archive, "train", [3 / 7] * 5 + [0.55] * 5, seed=3)
    )
    spread = match_rows(phantom_archive, "train", np.arange(5) / 7)
    assert len({phantom_archive.index[row].subject for row in spread}) == 5


def test_matched_rows_repeat_only_when_the_position_is_exhausted(phantom_archive):
    rows = match_rows(phantom_archive, "train", [0.0] * 10)
    assert sorted(np.unique(rows, return_counts=True)[1]) == [2] * 5


@pytest.fixture(scope="module")
def measured(phantom_archive):
    """The scores of the test slices, used as samples."""
    rows = phantom_archive.indices("test")
    images = np.repeat(phantom_archive.load(rows)[..., 0], 2, axis=0)
    positions = np.repeat([phantom_archive.index[row].position for row in rows], 2)
    return images, positions, evaluate_samples(images, positions, phantom_archive)


def test_real_slices_used_as_samples_score_as_real(measured):
    _, _, scores = measured
    rows, nearest_scores = scores["nearest"]
    assert len(rows) == len(nearest_scores) == scores["samples"] == 16
    assert scores["nearest_train_ssim"] == pytest.approx(scores["nearest_train_ssim_real"])
    assert scores["nearest_train_ssim"] == pytest.approx(nearest_scores.mean())
    assert scores["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert scores["foreground_area_difference"] == 0
    assert scores["coverage"] == 1
    assert scores["frechet_distance_real"] > 0
    # Each is there twice: no diversity at all.
    assert scores["pairwise_ms_ssim"] == pytest.approx(1)
    assert scores["pairwise_ms_ssim_real"] < 0.99


def test_density_and_coverage_are_those_by_brute_force():
    rng = np.random.default_rng(0)
    real, samples = rng.standard_normal((12, 3)), rng.standard_normal((20, 3))
    inside = np.zeros((20, 12), bool)
    for column, center in enumerate(real):
        others = sorted(np.linalg.norm(real - center, axis=1))[1:]
        inside[:, column] = [np.linalg.norm(sample - center) <= others[4] for sample in samples]
    expected = inside.sum() / (5 * 20), np.mean([inside[:, k].any() for k in range(12)])
    assert density_and_coverage(samples, real) == pytest.approx(expected)


def test_samples_of_the_same_distribution_have_the_expected_density_and_coverage():
    """Naeem et al. 2020, section 3.2: the expectations for samples of the real distribution."""
    rng = np.random.default_rng(1)
    real, samples = rng.standard_normal((2, 400, 8))
    density, coverage = density_and_coverage(samples, real)
    steps = np.arange(1, 6)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - np.prod((400 - steps) / (800 - steps)), abs=0.02)
    assert density_and_coverage(samples[:1].repeat(400, axis=0), real)[1] < 0.05
    assert density_and_coverage(samples + 100, real) == (0, 0)


def test_density_and_coverage_of_few_real_images():
    few = np.arange(3.0)[:, np.newaxis]
    assert density_and_coverage(few, few) == (1.5, 1)  # the radii are 2, 1 and 2: all lie in all
    assert np.isnan(density_and_coverage(few, few[:1])).all()


def test_every_score_has_its_baseline(measured):
    names = {
        "pairwise_ms_ssim",
        "nearest_train_ssim",
        "frechet_distance",
        "density",
        "coverage",
        "foreground_area_difference",
        "intensity_quantile_difference",
    }
    scores = measured[2]
    keys = {f"{name}{end}" for name in names for end in ("", "_real")}
    keys |= {f"{key}{end}" for key in keys for end in ("_low", "_high")}
    assert set(scores) == keys | {"samples", "nearest"}
    # Of the single test subject no interval by subject is known.
    known = names | {f"{name}_real" for name in names}
    for name in ("pairwise_ms_ssim", "pairwise_ms_ssim_real", "nearest_train_ssim"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
        known |= {f"{name}_low", f"{name}_high"}
    assert {key for key in keys if np.isfinite(scores[key])} == known


def test_intervals_by_subject(phantom_archive, tmp_path):
    splits = ["train"] * 4 + ["test"] * 3 + ["validate"]
    subjects = sorted({record.subject for record in phantom_archive.index})
    split_of = dict(zip(subjects, splits, strict=True))
    slices = [
        (dataclasses.replace(record, split=split_of[record.subject]), image)
        for record, image in zip(phantom_archive.index, phantom_archive.images, strict=True)
    ]
    archive = write_archive(tmp_path / "archive", slices, intensity_rule="phantom")
    positions = np.repeat(np.arange(8) / 7, 2)
    images = archive.load(match_rows(archive, "train", positions, seed=1))[..., 0]
    scores = evaluate_samples(images, positions, archive)
    for name in ("frechet_distance", "density", "nearest_train_ssim_real"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def test_memorised_training_slices_are_detected(phantom_archive):
    positions = np.repeat(np.arange(8) / 7, 2)
    rows = match_rows(phantom_archive, "train", positions)
    images = phantom_archive.load(rows)[..., 0]
    scores = evaluate_samples(images, positions, phantom_archive)
    assert scores["nearest_train_ssim"] == pytest.approx(1)
    assert scores["nearest_train_ssim_real"] < 0.95
    np.testing.assert_array_equal(scores["nearest"][0], rows)


def test_samples_that_cannot_be_scored_are_refused(measured, phantom_archive, tmp_path):
    images, positions, _ = measured
    with pytest.raises(InputError, match="`positions`.*Received: 1"):
        evaluate_samples(images[:1], positions[:1], phantom_archive)
    with pytest.raises(InputError, match="Received: 8 slices"):
        evaluate_samples(images[::2], positions[::2], phantom_archive)
    with pytest.raises(InputError, match="Received: 8 slices"):
        check_comparable(positions[::2], phantom_archive)
    with pytest.raises(InputError, match="3 positions for 16 images"):
        evaluate_samples(images, positions[:3], phantom_archive)
    pixels = np.rint(images * 255).astype("uint8")
    slices = [
        (SliceRecord(f"s{k}", "one", "train", float(positions[k]), "phantom"), pixels[k])
        for k in range(16)
    ]
    small = [(record, image[:48]) for record, image in slices]
    small = write_archive(tmp_path / "small", small, intensity_rule="phantom")
    with pytest.raises(InputError, match=r"`archive` .*64 x 64 .*Received: .*\(48, 64\)"):
        check_comparable(positions, small)
    lone = write_archive(tmp_path / "lone", slices, intensity_rule="phantom")
    with pytest.raises(InputError, match="'test'"):
        evaluate_samples(images, positions, lone)


@pytest.mark.real_data
def test_features_order_real_slices_by_distortion(oasis_pngs):
    from PIL import Image

    def images_of(split):
        files = sorted((oasis_pngs / f"keras_png_slices_{split}").glob("*.png"))
        chosen = np.linspace(0, len(files) - 1, 128).astype(int)
        return np.stack([np.asarray(Image.open(files[k]), "float32") / 255 for k in chosen])

    train, test = images_of("train"), images_of("test")
    test_features = features(test)
    blurred = np.stack([gaussian_filter(image, 1.5) for image in test])
    nonsense = np.random.default_rng(0).random(test.shape, "float32")
    sets = (train, blurred, with_noise(test, 0.05), nonsense)
    distances = [frechet_distance(features(images), test_features) for images in sets]
    assert distances == sorted(distances)
