import pytest
from fake_report import (
    PRIOR_METRICS,
    write_reconstruction,
    write_run,
    write_sampling,
)

from brainslices.report.collect import read_reconstruction, read_run, read_sampling
from brainslices.report.verdict import judge


def text(sentence):
    return "".join(part if isinstance(part, str) else part.value for part in sentence.parts)


def results(sentence):
    return {check.name: check.is_good for check in sentence.checks}


def test_good_model_passes_every_check(tmp_path):
    sentences = judge(
        [read_run(write_run(tmp_path / "prior", "pixelcnn", metrics=PRIOR_METRICS))],
        [read_reconstruction(write_reconstruction(tmp_path / "reconstruction"))],
        [read_sampling(write_sampling(tmp_path / "samples"))],
    )
    assert [sentence.is_good for sentence in sentences] == [True] * 3
    assert [len(sentence.checks) for sentence in sentences] == [3, 2, 3]
    reconstruction, prior, samples = map(text, sentences)
    assert "6 test slices of 2 subjects" in reconstruction
    assert "0.900, where the mean training image scores 0.300" in reconstruction
    assert "costs 5.05 bits, 20% below the 6.35" in prior
    assert "0.780 to their nearest training slice (real test slices 0.800)" in samples


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"ssim_foreground": 0.8251}, {"ssim_foreground": True}),  # 0.3 + 0.75 * 0.7 = 0.825
        ({"ssim_foreground": 0.8249}, {"ssim_foreground": False}),
        ({"codebook_usage": 0.5}, {"codebook usage": True}),
        ({"codebook_usage": 0.49}, {"codebook usage": False}),
        ({"ssim_foreground": 0.79}, {"ssim_foreground of AVIF": False}),
    ],
)
def test_reconstruction_thresholds(tmp_path, changes, failing):
    reconstruction = read_reconstruction(write_reconstruction(tmp_path, **changes))
    sentence = judge([], [reconstruction], [])[0]
    assert failing.items() <= results(sentence).items()
    assert sentence.is_good == all(results(sentence).values())


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"nearest_train_ssim": 0.819}, {"SSIM to the nearest training slice": True}),
        ({"nearest_train_ssim": 0.97}, {"SSIM to the nearest training slice": False}),
        ({"pairwise_ms_ssim": 0.9}, {"MS-SSIM between samples": False}),
        ({"pairwise_ms_ssim": 0.7}, {"MS-SSIM between samples": False}),
        ({"frechet_distance": 0.0259}, {"Fréchet distance to test slices": False}),
    ],
)
def test_sample_thresholds(tmp_path, changes, failing):
    sentence = judge([], [], [read_sampling(write_sampling(tmp_path, **changes))])[2]
    assert failing.items() <= results(sentence).items()
    assert sentence.is_good == all(failing.values())


@pytest.mark.parametrize(
    ("nats", "expected"), [((3.4, 4.17), False), ((3.0, 3.5), False), ((4.1, 4.1), True)]
)
def test_prior_must_beat_code_counts_and_not_overfit(tmp_path, nats, expected):
    rates = PRIOR_METRICS["splits"]["test"]
    splits = {
        name: {**rates, "nats_per_code": value}
        for name, value in zip(("train", "validate"), nats, strict=True)
    }
    run = write_run(tmp_path, "pixelcnn", metrics={**PRIOR_METRICS, "splits": splits})
    sentence = judge([read_run(run)], [], [])[1]
    assert sentence.is_good is expected
    assert "validate slice" in text(sentence)


def test_what_is_missing_is_named_and_not_judged(tmp_path):
    floor = {"epochs": 2, "floor_mean_image": {"ssim_foreground": 0.3}}
    runs = [
        write_run(tmp_path / "vqvae", epochs=1),
        write_run(tmp_path / "trained", metrics=floor),
        write_run(tmp_path / "new", "pixelcnn", 0),
    ]
    sampling = read_sampling(write_sampling(tmp_path / "samples", with_nearest=False))
    sentences = judge([read_run(run) for run in runs], [], [sampling])
    assert [sentence.is_good for sentence in sentences] == [None] * 3
    reconstruction, prior, samples = map(text, sentences)
    assert "validation ssim_foreground 0.600, without floors; " in reconstruction
    assert "(mean training image 0.300)" in reconstruction
    assert "--reconstruction" in reconstruction
    assert "no epoch of 2 has finished" in prior
    rates = {**PRIOR_METRICS["splits"]["test"]}
    del rates["nats_per_code_by_position"]  # of an earlier version
    earlier = {**PRIOR_METRICS, "splits": dict.fromkeys(("train", "validate"), rates)}
    run = write_run(tmp_path / "earlier", "pixelcnn", metrics=earlier)
    [_, sentence, _] = judge([read_run(run)], [], [])
    assert sentence.is_good is None
    assert "trained, 2 epochs" in text(sentence)
    assert "sample.py --evaluate" in samples
    assert "--samples" in text(judge([], [], [])[2])
