"""The reported scores of a reconstruction, which its tables, floors and intervals follow."""

from typing import NamedTuple

__all__ = ["SCORES", "Score"]


class Score(NamedTuple):
    """How tables show a score.

    Attributes:
        title: its column in the table for the terminal.
        digits: number of decimal places there.
        has_floor_columns: whether the CSV table has its floors for each slice.
    """

    title: str
    digits: int
    has_floor_columns: bool = True


# The keys of `brainslices.evaluation.image_metrics.reconstruction_scores`.
SCORES = {
    "ssim": Score("ssim", digits=4),
    "ssim_foreground": Score("ssim_foreground", digits=4),
    "psnr_db": Score("PSNR in dB", digits=2, has_floor_columns=False),
}
