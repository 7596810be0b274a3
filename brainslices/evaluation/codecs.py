"""Classical image codecs as baselines: rate of the coded payload alone."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import _picture

__all__ = ["CODECS", "codec_rate"]
CODECS = ("avif", "jpeg2000")


def codec_rate(
    images: Iterable[np.ndarray], codec: str, quality: float
) -> tuple[float, list[np.ndarray]]:
    """Sends slices through a classical codec and counts its coded payload alone.

    Args:
        images: Pictures of shape (rows, cols) or (rows, cols, 1) in [0, 1], coded as 8-bit grey.
        codec: "avif" (speed 2): the payload is the content of the `mdat` box, without the other
            boxes (`ftyp` and `meta`, some 270 bytes). "jpeg2000" (9/7 wavelet, one tile, no JP2
            boxes): the packets after the start-of-data marker, without the main header, the
            tile's header and the end marker (some 150 bytes).
        quality: AVIF: 0 (smallest) to 100. JPEG 2000: the compression ratio aimed at, above 1.

    Returns:
        Bits a pixel over all the slices, and the decoded float32 pictures in [0, 1].

    Raises:
        InputError: Unknown codec, a quality out of range, or no image.
    """
    options, payload_size = _codec(codec, quality)
    bits, pixels, decoded = 0, 0, []
    for image in images:
        levels = np.rint(np.clip(_picture("images", image), 0, 1) * 255).astype("uint8")
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, **options)
        bits += 8 * payload_size(buffer.getvalue())
        pixels += levels.size
        with Image.open(buffer) as picture:
            decoded.append(np.asarray(picture.convert("L"), "float32") / 255)
    if not decoded:
        raise InputError("`images` must hold at least one picture. Received: none.")
    return bits / pixels, decoded


def _codec(codec, quality):
    if codec not in CODECS:
        raise InputError(f"`codec` must be one of {', '.join(CODECS)}. Received: codec={codec!r}.")
    if codec == "avif":
        if not 0 <= quality <= 100:
            raise InputError(f"AVIF's `quality` runs from 0 to 100. Received: quality={quality}.")
        return {"format": "AVIF", "quality": int(quality), "speed": 2}, _avif_payload
    if not quality > 1:
        raise InputError(
            f"JPEG 2000's `quality` is a compression ratio above 1. Received: quality={quality}."
        )
    options = {"quality_mode": "rates", "quality_layers": [quality], "irreversible": True}
    return {"format": "JPEG2000", "no_jp2": True, **options}, _jpeg2000_payload


def _avif_payload(data: bytes) -> int:
    """Bytes inside the `mdat` boxes. Reference: ISO/IEC 14496-12, section 4.2."""
    position, payload = 0, 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4]) or len(data) - position
        if data[position + 4 : position + 8] == b"mdat":
            payload += size - 8
        position += size
    return payload


def _jpeg2000_payload(data: bytes) -> int:
    """Bytes between start of data and end of codestream. Reference: ISO/IEC 15444-1, annex A."""
    position = 2
    while data[position : position + 2] != b"\xff\x93":
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return len(data) - (position + 2) - 2
