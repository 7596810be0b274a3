"""Classical image codecs as baselines: rate of the encoded payload alone."""

import io
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from brainslices.data.images import to_uint8
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import Images, check_image, score_slices, summarize
from brainslices.progress import bar

__all__ = ["CODECS", "codec_rate", "codec_scores", "search_quality", "spread_subset"]

# Quality settings of each codec from the lowest rate up; JPEG 2000's ratios are 1 % apart.
CODECS: dict[str, Sequence[float]] = {
    "avif": range(101),
    "jpeg2000": np.geomspace(200, 1.05, 512).tolist(),
    "jpegxl": range(100),
}
SEARCH_SLICES, MAX_EXCESS = 96, 1.25

logger = logging.getLogger(__name__)


def codec_rate(
    images: Iterable[np.ndarray], codec: str, quality: float
) -> tuple[float, list[np.ndarray]]:
    """Encode slices with a classical codec and count the payload alone.

    Args:
        images: images of shape (rows, cols) or (rows, cols, 1) in [0, 1], encoded as 8-bit grey.
        codec: "avif" (speed 2, tuned for SSIM, which needs fewer bits than the other tunings at
            the same `ssim_foreground`): the payload is the content of the `mdat` box, without the
            other boxes (`ftyp` and `meta`, about 270 bytes). "jpeg2000" (9/7 wavelet, one tile, no
            JP2 boxes): the packets after the start-of-data marker, without the main header, the
            tile's header and the end marker (about 150 bytes). "jpegxl" (effort 9, without
            container): the whole codestream, at most 69 bytes of which are headers.
        quality: AVIF: 0 (smallest) to 100. JPEG XL: 0 (smallest) to below 100, where it is
            lossless. JPEG 2000: the target compression ratio, above 1.

    Returns:
        Bits per pixel over all slices, and the decoded float32 images in [0, 1].

    Raises:
        InputError: if the codec is unknown, the quality out of range, or there is no image.
    """
    options, payload_size = _encoder(codec, quality)

    def code(image):
        grey = to_uint8(check_image("images", image))
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, **options)
        with Image.open(buffer) as file:
            pixels = np.asarray(file.convert("L"), "float32") / 255
        return 8 * payload_size(buffer.getvalue()), pixels

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        coded = list(pool.map(code, images))
    if not coded:
        raise InputError("`images` must hold at least one image. Received: none.")
    bits, decoded = zip(*coded, strict=True)
    return sum(bits) / sum(image.size for image in decoded), list(decoded)


def codec_scores(images: Images, subjects: Sequence[str], bits_per_pixel: float) -> dict[str, dict]:
    """Score each codec at the lowest of its rates that is at least `bits_per_pixel`.

    The setting is searched on at most `SEARCH_SLICES` evenly spread slices. If all settings have a
    lower rate, the highest is used. A codec whose lowest rate is more than `MAX_EXCESS` times the
    rate to match cannot be compared and is left out.

    Args:
        images: images of shape (rows, cols) in [0, 1].
        subjects: subject of each image.
        bits_per_pixel: the rate to match.

    Returns:
        `codec_` and the name of each codec, each with `bits_per_pixel`, `quality` and the
        scores of `summarize`.
    """
    subset, results = spread_subset(images), {}
    for codec, settings in CODECS.items():
        lowest, _ = codec_rate(subset, codec, settings[0])
        if lowest > MAX_EXCESS * bits_per_pixel:
            text = "%s is left out: it needs at least %.4f bits per pixel, more than %.4f."
            logger.warning(text, codec, lowest, bits_per_pixel)
            continue
        quality = search_quality(subset, codec, bits_per_pixel)
        rate, decoded = codec_rate(images, codec, quality)
        results[f"codec_{codec}"] = {
            "bits_per_pixel": rate,
            "quality": quality,
            **summarize(score_slices(images, decoded, codec), {}, subjects),
        }
    return results


def spread_subset(images: Images, count: int = SEARCH_SLICES) -> list[np.ndarray]:
    """Return at most `count` evenly spread images, to search a setting on."""
    return [images[row] for row in range(0, len(images), -(-len(images) // count))]


def search_quality(
    images: Sequence[np.ndarray], codec: str, bits_per_pixel: float, silent: bool = False
) -> float:
    """Find the lowest quality of a codec whose rate is at least `bits_per_pixel`, else its highest.

    Args:
        images: as in `codec_rate`.
        codec: as in `codec_rate`.
        bits_per_pixel: the rate to match.
        silent: show no progress.
    """
    qualities = CODECS[codec]
    with bar(None, codec, "settings", silent=silent) as progress:

        def rate(quality):
            progress.update(1)
            return codec_rate(images, codec, quality)[0]

        index = bisect_left(qualities, bits_per_pixel, key=rate)
    return qualities[min(index, len(qualities) - 1)]


def _encoder(codec: str, quality: float) -> tuple[dict, Callable[[bytes], int]]:
    """Options of Pillow's encoder, and the function that counts its payload's bytes."""
    if codec not in CODECS:
        raise InputError(f"`codec` must be one of {', '.join(CODECS)}. Received: codec={codec!r}.")
    if codec == "avif":
        _check_quality("AVIF's `quality` runs from 0 to 100", quality, 0 <= quality <= 100)
        options = {"speed": 2, "advanced": {"tune": "ssim"}}
        return {"format": "AVIF", "quality": int(quality), **options}, _avif_payload
    if codec == "jpegxl":
        import pillow_jxl  # noqa: F401  (registers the format with Pillow)

        expected = "JPEG XL's `quality` must be at least 0 and below 100"
        _check_quality(expected, quality, 0 <= quality < 100)
        return {"format": "JXL", "quality": int(quality), "effort": 9}, len
    _check_quality("JPEG 2000's `quality` is a compression ratio above 1", quality, quality > 1)
    options = {"quality_mode": "rates", "quality_layers": [quality], "irreversible": True}
    return {"format": "JPEG2000", "no_jp2": True, **options}, _jpeg2000_payload


def _check_quality(expectation, quality, is_valid):
    if not is_valid:
        raise InputError(f"{expectation}. Received: quality={quality}.")


def _avif_payload(data: bytes) -> int:
    """Bytes inside the `mdat` boxes. Reference: ISO/IEC 14496-12, section 4.2."""
    offset, payload = 0, 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 4]) or len(data) - offset
        if data[offset + 4 : offset + 8] == b"mdat":
            payload += size - 8
        offset += size
    return payload


def _jpeg2000_payload(data: bytes) -> int:
    """Bytes between start of data and end of codestream. Reference: ISO/IEC 15444-1, annex A."""
    offset = 2
    while data[offset : offset + 2] != b"\xff\x93":
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return len(data) - (offset + 2) - 2
