"""Reported scores of reconstructions: SSIM and PSNR, their floors and intervals, and the rate.

Computed by scikit-image in float64 at the source size. `brainslices.evaluation.ssim` is the
batched counterpart that training monitors.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.metrics import structural_similarity

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import bootstrap_interval, named_interval
from brainslices.evaluation.pooling import RADIUS, SIGMA, SMALLEST_SIDE
from brainslices.evaluation.scores import SCORES
from brainslices.progress import track

__all__ = [
    "PSNR_CEILING_DB",
    "SCORES",
    "Images",
    "bits_per_pixel_raw",
    "check_image",
    "floor_scores",
    "mean_image",
    "reconstruction_scores",
    "score_slices",
    "similarity_map",
    "subject_bootstrap_interval",
    "summarize",
    "with_interval",
]

Images = Sequence[np.ndarray] | np.ndarray
CHUNK = 256
# The rounding of an 8-bit source has variance 1 / 12 grey level^2; no smaller error is real.
PSNR_CEILING_DB = 10 * math.log10(12 * 255**2)


def similarity_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Compute SSIM at every pixel: Gaussian window, sigma 1.5, data range 1.

    Args:
        original: floating array of shape (rows, cols) or (rows, cols, 1), clipped to [0, 1].
        reconstruction: likewise, of the same shape.

    Returns:
        float64 array of shape (rows, cols), at most 1.

    Raises:
        InputError: if the shapes differ or are not those of images, a side is shorter than the
            window of 11 pixels, or a value is NaN or infinite.

    Reference:
        Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment", equation 13.
    """
    return _similarity(*_check_pair(original, reconstruction))


def reconstruction_scores(original: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """Score one slice at its source size; arguments and errors as in `similarity_map`.

    Returns:
        `ssim`: mean of the SSIM map without its outer 5 pixels, as in scikit-image.
        `ssim_foreground`: mean of the map where the original exceeds `FOREGROUND_THRESHOLD`; NaN
        without foreground.
        `psnr_db`: peak signal-to-noise ratio in decibels, at most `PSNR_CEILING_DB` (58.9), the
        rounding error of the 8-bit source, so that equal images do not make a mean infinite.
    """
    original, reconstruction = _check_pair(original, reconstruction)
    similarity = _similarity(original, reconstruction)
    foreground = similarity[original > FOREGROUND_THRESHOLD]
    inner = slice(RADIUS, -RADIUS)
    squared_error = max(
        np.mean(np.square(original - reconstruction)), 10 ** (-PSNR_CEILING_DB / 10)
    )
    return {
        "ssim": float(similarity[inner, inner].mean()),
        "ssim_foreground": float(foreground.mean()) if foreground.size else math.nan,
        "psnr_db": float(-10 * np.log10(squared_error)),
    }


def score_slices(
    originals: Images, reconstructions: Images, description: str | None = None
) -> dict[str, np.ndarray]:
    """Score many slices on all cores.

    Args:
        originals: floating array of shape (slices, rows, cols) or (slices, rows, cols, 1), or a
            sequence of images, in [0, 1]. Each is read when it is scored.
        reconstructions: as many images.
        description: label of the progress bar; None shows none.

    Returns:
        Each name of `SCORES` with its float64 array of shape (slices,).

    Raises:
        InputError: if the counts differ, or as in `similarity_map`.
    """
    count = len(originals)
    if len(reconstructions) != count:
        raise InputError(
            "`reconstructions` must hold one image for each original. Received: "
            f"{len(reconstructions)} for {count}."
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scored = pool.map(
            lambda row: reconstruction_scores(originals[row], reconstructions[row]), range(count)
        )
        rows = list(track(scored, count, description, "slices") if description else scored)
    return {name: np.array([row[name] for row in rows], "float64") for name in SCORES}


def floor_scores(originals: Images, training_mean: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Score what needs no model: a black image and the mean training image.

    Args:
        originals: as in `score_slices`.
        training_mean: float array of shape (rows, cols) in [0, 1], of the originals' size.

    Returns:
        `floor_black` and `floor_mean_image`, each as `score_slices` returns it.
    """
    floors = {"floor_black": np.zeros_like(training_mean), "floor_mean_image": training_mean}
    return {
        name: score_slices(originals, np.broadcast_to(image, (len(originals), *image.shape)), name)
        for name, image in floors.items()
    }


def mean_image(archive: SliceArchive) -> np.ndarray:
    """Average the training images, `CHUNK` of them in memory at a time.

    Returns:
        float32 array of shape (rows, cols) in [0, 1].
    """
    rows = archive.indices("train")
    parts = (archive.load(rows[k : k + CHUNK]) for k in range(0, len(rows), CHUNK))
    total = sum(part.sum(axis=0, dtype="float64") for part in parts)
    return (total[..., 0] / len(rows)).astype("float32")


def subject_bootstrap_interval(
    values: np.ndarray, subjects: Sequence[str], seed: int
) -> tuple[float, float, float]:
    """Compute the mean over slices with its 95 % percentile bootstrap interval by subject.

    Slices of one brain are not independent: a resample draws whole subjects, with replacement.

    Args:
        values: float array of shape (slices,); NaN is left out.
        subjects: subject of each slice.
        seed: seed of the resampling.

    Returns:
        The mean, the 2.5 and the 97.5 % percentile; NaN without values. One subject: width 0.

    Raises:
        InputError: if `values` and `subjects` differ in length.
    """
    values, names = np.asarray(values, "float64"), np.asarray(subjects)
    if values.ndim != 1 or values.shape != names.shape:
        shapes = f"{values.shape} and {names.shape}"
        raise InputError(
            f"`values` and `subjects` must have one shape, (slices,). Received: {shapes}."
        )
    is_scored = ~np.isnan(values)
    if not is_scored.any():
        return math.nan, math.nan, math.nan
    owner = np.unique(names[is_scored], return_inverse=True)[1]
    sums, counts = np.bincount(owner, weights=values[is_scored]), np.bincount(owner)
    return bootstrap_interval(
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis), (sums, counts), seed
    )


def with_interval(name: str, values: np.ndarray, subjects: Sequence[str]) -> dict[str, float]:
    """Return the mean of the values of slices under a name, and its interval by subject.

    Args:
        name: key of the mean; those of the interval end in `_low` and `_high`.
        values: as in `subject_bootstrap_interval`.
        subjects: as in `subject_bootstrap_interval`.
    """
    return named_interval(name, subject_bootstrap_interval(values, subjects, seed=0))


def summarize(
    scores: Mapping[str, np.ndarray],
    floors: Mapping[str, Mapping[str, np.ndarray]],
    subjects: Sequence[str],
) -> dict:
    """Condense the scores of many slices into what `metrics.json` holds.

    Args:
        scores: as `score_slices` returns them.
        floors: as `floor_scores` returns them, on the same slices.
        subjects: subject of each slice.

    Returns:
        Each of `SCORES` with its `_low` and `_high` (95 % interval by subject); the same in a
        dictionary under each floor's name; `subjects` and `slices`, their numbers. A mean over no
        slice (`ssim_foreground` where all are black) is NaN.
    """

    def with_intervals(scores):
        intervals = (with_interval(name, scores[name], subjects) for name in SCORES)
        return {key: value for interval in intervals for key, value in interval.items()}

    return {
        **with_intervals(scores),
        **{name: with_intervals(floor) for name, floor in floors.items()},
        "subjects": len(set(subjects)),
        "slices": len(subjects),
    }


def bits_per_pixel_raw(
    code_grid_shape: tuple[int, int], num_embeddings: int, image_shape: tuple[int, int]
) -> float:
    """Compute the rate of a code grid without an entropy coder, in bits per source pixel.

    Args:
        code_grid_shape: rows and columns of the grid.
        num_embeddings: size of the codebook; a code takes log2 of it.
        image_shape: rows and columns of the source image, before any crop.

    Example:
        >>> bits_per_pixel_raw((32, 32), 512, (256, 256))
        0.140625
    """
    return math.prod(code_grid_shape) * math.log2(num_embeddings) / math.prod(image_shape)


def check_image(name: str, image: np.ndarray) -> np.ndarray:
    """Convert a floating image to float64 of shape (rows, cols).

    Args:
        name: the argument's name, for the message.
        image: array of shape (rows, cols) or (rows, cols, 1).

    Raises:
        InputError: if it is of another shape or dtype, or holds NaN or infinity.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.floating):
        raise InputError(
            f"`{name}` must be a floating image of shape (rows, cols) with intensities in "
            f"[0, 1]. Received: {image.dtype} of shape {image.shape}."
        )
    if not np.isfinite(image).all():
        raise InputError(
            f"`{name}` must be finite. Received: {np.count_nonzero(~np.isfinite(image))} "
            f"values of {image.size} that are NaN or infinite."
        )
    return image.astype("float64")


def _check_pair(original, reconstruction):
    original = check_image("original", original)
    reconstruction = check_image("reconstruction", reconstruction)
    if original.shape != reconstruction.shape:
        raise InputError(
            "`original` and `reconstruction` must have the same shape: paste the reconstruction "
            f"back to the source size. Received: {original.shape} and {reconstruction.shape}."
        )
    if min(original.shape) < SMALLEST_SIDE:
        raise InputError(
            f"`original` must be at least {SMALLEST_SIDE} pixels per side, the width of the SSIM "
            f"window. Received: shape {original.shape}."
        )
    return np.clip(original, 0, 1), np.clip(reconstruction, 0, 1)


def _similarity(original, reconstruction):
    _, similarity = structural_similarity(
        original,
        reconstruction,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    return similarity
