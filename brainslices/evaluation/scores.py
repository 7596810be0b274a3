"""The reported scores of a reconstruction, which its tables, floors and intervals follow."""

from typing import NamedTuple

__all__ = ["CODEC_TITLES", "SCORES", "Score"]


class Score(NamedTuple):
    """How tables show a score."""

    title: str
    """Its column in the table for the terminal."""
    digits: int
    """Number of decimal places there."""
    has_floor_columns: bool = True
    """Whether the CSV table has its floors for each slice."""


# The keys of `brainslices.evaluation.image_metrics.reconstruction_scores`.
SCORES = {
    "ssim": Score("ssim", digits=4),
    "ssim_foreground": Score("ssim_foreground", digits=4),
    "psnr_db": Score("PSNR in dB", digits=2, has_floor_columns=False),
}

# Key of a codec in `metrics.json` -> its name in tables.
CODEC_TITLES = {
    "codec_avif": "AVIF",
    "codec_jpeg2000": "JPEG 2000",
    "codec_jpegxl": "JPEG XL",
}
