"""Classical codecs: rate of the payload, and the search for a setting at a given rate."""

import io

import numpy as np
import pytest
from PIL import Image

from brainslices.data.phantom import phantom_slices
from brainslices.errors import InputError
from brainslices.evaluation.codecs import codec_rate, codec_scores, spread_subset
from brainslices.evaluation.image_metrics import SCORES, score_slices


@pytest.fixture(scope="module")
def heads():
    """A slice each of two phantom subjects, float32 of shape (2, 64, 64)."""
    slices = [phantom_slices(subject, np.array([0.5]), (64, 64), seed=0) for subject in range(2)]
    return np.concatenate(slices).astype("float32") / 255


@pytest.mark.parametrize(
    ("codec", "qualities"),
    [("avif", (10, 50, 90)), ("jpeg2000", (60, 20, 5)), ("jpegxl", (5, 50, 90))],
)
def test_codec_rate_buys_quality(heads, codec, qualities):
    rates, errors = [], []
    for quality in qualities:
        rate, decoded = codec_rate(heads[..., None], codec, quality)
        assert {image.shape for image in decoded} == {(64, 64)}
        assert all(image.min() >= 0 and image.max() <= 1 for image in decoded)
        rates.append(rate)
        errors.append(np.abs(np.stack(decoded) - heads).mean())
    assert 0 < rates[0] < rates[1] < rates[2]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("codec", "quality", "options", "headers"),
    [
        (
            "avif",
            50,
            {"format": "AVIF", "quality": 50, "speed": 2, "advanced": {"tune": "ssim"}},
            range(200, 300),
        ),
        (
            "jpeg2000",
            10,
            {
                "format": "JPEG2000",
                "no_jp2": True,
                "quality_mode": "rates",
                "quality_layers": [10],
                "irreversible": True,
            },
            range(100, 200),
        ),
        ("jpegxl", 50, {"format": "JXL", "quality": 50, "effort": 9}, [0]),
    ],
)
def test_codec_payload_leaves_out_the_headers_alone(heads, codec, quality, options, headers):
    codec_rate(heads[:1], codec, quality)  # registers a format that Pillow lacks
    file = io.BytesIO()
    Image.fromarray(np.rint(heads[0] * 255).astype("uint8")).save(file, **options)
    payload = codec_rate(heads[:1], codec, quality)[0] * heads[0].size / 8
    assert payload > 0
    assert len(file.getvalue()) - payload in headers


@pytest.mark.parametrize(
    ("codec", "quality", "message"),
    [
        ("webp", 50, "`codec`.*codec='webp'"),
        ("avif", 101, "`quality`.*quality=101"),
        ("jpeg2000", 1, "`quality`.*quality=1"),
        ("jpegxl", 100, "`quality`.*quality=100"),
    ],
)
def test_codec_errors_name_the_argument(heads, codec, quality, message):
    with pytest.raises(InputError, match=message):
        codec_rate(heads, codec, quality)


def test_codec_without_images_is_refused():
    with pytest.raises(InputError, match="`images`.*Received: none"):
        codec_rate([], "avif", 50)


@pytest.mark.slow
def test_codecs_are_scored_at_the_given_rate_or_just_above(heads):
    scores = codec_scores(heads, ["one", "two"], rate := 1.0)
    assert list(scores) == ["codec_avif", "codec_jpeg2000", "codec_jpegxl"]
    for codec in scores.values():
        assert 1 <= codec["bits_per_pixel"] / rate < 1.2
        assert 0.3 < codec["ssim"] < 1
        assert (codec["subjects"], codec["slices"]) == (2, 2)
        assert set(SCORES) <= set(codec)


def test_codec_below_the_rate_takes_its_highest_quality(heads):
    scores = codec_scores(heads[:1], ["one"], 100)
    assert scores["codec_avif"]["quality"] == 100
    assert scores["codec_avif"]["bits_per_pixel"] < 100


def test_codec_that_needs_more_bits_is_left_out(heads, caplog):
    assert codec_scores(heads[:1], ["one"], 0.001) == {}
    assert "jpegxl is left out: it needs at least" in caplog.text


@pytest.mark.slow
@pytest.mark.real_data
def test_avif_on_real_slices(oasis_pngs):
    """The known scores at 0.103 bits per pixel on validation subjects."""
    files = sorted((oasis_pngs / "keras_png_slices_validate").iterdir())[::7]
    heads = np.stack([np.asarray(Image.open(file)) for file in files]).astype("float32") / 255
    rate, decoded = codec_rate(heads[::3], "avif", 20)
    coded = score_slices(heads[::3], decoded)
    assert rate == pytest.approx(0.103, abs=0.005)
    assert coded["ssim"].mean() == pytest.approx(0.952, abs=0.005)
    # The default tuning scores 0.867 at 0.110.
    assert coded["ssim_foreground"].mean() == pytest.approx(0.884, abs=0.008)


def test_settings_are_searched_on_slices_of_all_parts_of_a_split():
    assert spread_subset(range(3), 4) == [0, 1, 2]
    assert spread_subset(range(8), 4) == [0, 2, 4, 6]
    assert spread_subset(range(10), 4) == [0, 3, 6, 9]
