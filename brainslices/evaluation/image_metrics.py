"""The reported measurement of reconstructions: scores, their floors, intervals and rates.

NumPy, scikit-image and Pillow alone, in float64 at the source size; `device_ssim` is the batched
counterpart that training monitors.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

import numpy as np
from skimage.metrics import structural_similarity

from brainslices.data.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.progress import track

__all__ = [
    "PSNR_CEILING_DB",
    "SCORES",
    "bits_per_pixel_raw",
    "subject_bootstrap_interval",
    "floor_scores",
    "mean_image",
    "reconstruction_scores",
    "score_slices",
    "similarity_map",
    "summarize",
]

SCORES = ("ssim", "ssim_foreground", "psnr_db")
# The rounding of an 8-bit source has variance 1 / 12 grey level^2; no smaller error is real.
PSNR_CEILING_DB = 10 * math.log10(12 * 255**2)
WINDOW_RADIUS = 5


def similarity_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel: Gaussian window, sigma 1.5, data range 1.

    Args:
        original: Floating array of shape (rows, cols) or (rows, cols, 1), clipped to [0, 1].
        reconstruction: The same for the picture to judge.

    Returns:
        float64 array of shape (rows, cols), at most 1.

    Raises:
        InputError: The shapes differ, are not a picture's, or a side is shorter than the window
            of 11 pixels; a value is not finite.

    Reference:
        Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment", equation 13.
    """
    return _similarity(*_pictures(original, reconstruction))


def reconstruction_scores(original: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """Scores one slice at its source size.

    Args:
        original: Floating array of shape (rows, cols) or (rows, cols, 1), clipped to [0, 1].
        reconstruction: The same for the picture to judge.

    Returns:
        `ssim`: the similarity map's mean without its outer 5 pixels, as scikit-image has it.
        `ssim_foreground`: the map's mean where the original exceeds `FOREGROUND_THRESHOLD`, not
        a number where it nowhere does. `psnr_db`: peak signal-to-noise ratio in decibels, at
        most `PSNR_CEILING_DB` (58.9), the rounding error of the 8-bit source: equal pictures
        get that instead of infinity, so means stay finite.

    Raises:
        InputError: As `similarity_map`.
    """
    original, reconstruction = _pictures(original, reconstruction)
    similarity = _similarity(original, reconstruction)
    foreground = similarity[original > FOREGROUND_THRESHOLD]
    inner = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    squared_error = max(
        np.mean(np.square(original - reconstruction)), 10 ** (-PSNR_CEILING_DB / 10)
    )
    return {
        "ssim": float(similarity[inner, inner].mean()),
        "ssim_foreground": float(foreground.mean()) if foreground.size else math.nan,
        "psnr_db": float(-10 * np.log10(squared_error)),
    }


def score_slices(
    originals: Sequence[np.ndarray],
    reconstructions: Iterable[np.ndarray],
    *,
    description: str = "scoring",
) -> dict[str, np.ndarray]:
    """Scores many slices on all cores, taking the reconstructions as they come.

    Args:
        originals: Floating array of shape (slices, rows, cols) or (slices, rows, cols, 1), or a
            sequence of pictures, in [0, 1].
        reconstructions: As many pictures, in any iterable: a generator keeps few in memory.
        description: What the progress bar says.

    Returns:
        Each name of `SCORES` with its float64 array of shape (slices,).

    Raises:
        InputError: The counts differ, or as `similarity_map`.
    """
    pairs = _paired(originals, reconstructions)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scored = _map_in_chunks(pool, lambda pair: reconstruction_scores(*pair), pairs)
        rows = list(track(scored, len(originals), description, "slices"))
    return {name: np.array([row[name] for row in rows], "float64") for name in SCORES}


def floor_scores(
    originals: Sequence[np.ndarray], training_mean: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Scores what needs no model: a black picture and the mean training image.

    Args:
        originals: As in `score_slices`.
        training_mean: float array of shape (rows, cols) in [0, 1], of the originals' size.

    Returns:
        `floor_black` and `floor_mean_image`, each as `score_slices` returns it.
    """
    floors = {"floor_black": np.zeros_like(training_mean), "floor_mean_image": training_mean}
    return {
        name: score_slices(originals, repeat(picture, len(originals)), description=name)
        for name, picture in floors.items()
    }


def mean_image(archive: SliceArchive, split: str = "train", chunk: int = 256) -> np.ndarray:
    """Mean picture of a split: the reconstruction that knows the data but not the slice.

    Args:
        archive: The slice archive.
        split: Which of its splits to average.
        chunk: Slices held in memory at a time.

    Returns:
        float32 array of shape (rows, cols) in [0, 1].
    """
    rows = archive.indices(split)
    parts = (archive.load(rows[k : k + chunk]) for k in range(0, len(rows), chunk))
    total = sum(part.sum(axis=0, dtype="float64") for part in parts)
    return (total[..., 0] / len(rows)).astype("float32")


def subject_bootstrap_interval(
    values: np.ndarray, subjects: Sequence[str], seed: int, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean over slices with its 95 % bootstrap interval, resampling subjects.

    The slices of one head are alike, so subjects are the independent unit: each resample draws
    as many subjects as there are, with replacement, and takes all the slices of each.

    Args:
        values: Float array of shape (slices,); those that are not a number are left out.
        subjects: The subject of each slice.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        The mean and the 2.5 and 97.5 % percentiles of the resampled means, all not a number
        when no value is left. One subject gives an interval of width 0: it says nothing.

    Raises:
        InputError: `values` and `subjects` differ in length.

    Reference:
        Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.
    """
    values, subjects = np.asarray(values, "float64"), np.asarray(subjects)
    if values.ndim != 1 or values.shape != subjects.shape:
        raise InputError(
            "`values` and `subjects` must have one entry a slice. Received: shapes "
            f"{values.shape} and {subjects.shape}."
        )
    kept = ~np.isnan(values)
    if not kept.any():
        return math.nan, math.nan, math.nan
    names, owner = np.unique(subjects[kept], return_inverse=True)
    totals = np.bincount(owner, weights=values[kept])
    counts = np.bincount(owner)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(names), size=(resamples, len(names)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(totals.sum() / counts.sum()), float(low), float(high)


def summarize(
    scores: Mapping[str, np.ndarray],
    floors: Mapping[str, Mapping[str, np.ndarray]],
    subjects: Sequence[str],
    seed: int = 0,
) -> dict:
    """Condenses the scores of many slices into what `metrics.json` holds.

    Args:
        scores: As `score_slices` returns them.
        floors: As `floor_scores` returns them, on the same slices.
        subjects: The subject of each slice.
        seed: Seed of the bootstrap.

    Returns:
        Each of `SCORES` with its `_low` and `_high` (95 % interval by subject); the same in a
        dictionary under each floor's name; `subjects` and `slices`, their numbers. A mean over no
        slice (`ssim_foreground` where all are black) is not a number.
    """
    return {
        **_with_intervals(scores, subjects, seed),
        **{name: _with_intervals(floor, subjects, seed) for name, floor in floors.items()},
        "subjects": len(set(subjects)),
        "slices": len(subjects),
    }


def bits_per_pixel_raw(
    code_grid_shape: tuple[int, int], num_embeddings: int, image_shape: tuple[int, int]
) -> float:
    """Rate of a code grid stored without an entropy coder.

    Args:
        code_grid_shape: Rows and columns of the grid.
        num_embeddings: Size of the codebook.
        image_shape: Rows and columns of the source picture, before any crop.

    Returns:
        Bits a source pixel: the grid's codes at log2(num_embeddings) bits each.
    """
    return math.prod(code_grid_shape) * math.log2(num_embeddings) / math.prod(image_shape)


def _pictures(original, reconstruction):
    original = _picture("original", original)
    reconstruction = _picture("reconstruction", reconstruction)
    if original.shape != reconstruction.shape:
        raise InputError(
            "`original` and `reconstruction` must have one shape: paste the reconstruction back "
            f"to the source size. Received: {original.shape} and {reconstruction.shape}."
        )
    if min(original.shape) <= 2 * WINDOW_RADIUS:
        raise InputError(
            f"Pictures must be at least {2 * WINDOW_RADIUS + 1} pixels a side, the width of the "
            f"similarity's window. Received: shape {original.shape}."
        )
    return np.clip(original, 0, 1), np.clip(reconstruction, 0, 1)


def _picture(name, image):
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.floating):
        raise InputError(
            f"`{name}` must be floating pictures of shape (rows, cols) with intensities in "
            f"[0, 1]. Received: {image.dtype} of shape {image.shape}."
        )
    if not np.isfinite(image).all():
        raise InputError(
            f"`{name}` must be finite. Received: {np.count_nonzero(~np.isfinite(image))} "
            f"values that are not, of {image.size}."
        )
    return image.astype("float64")


def _similarity(original, reconstruction):
    _, similarity = structural_similarity(
        original,
        reconstruction,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    return similarity


def _paired(originals, reconstructions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    count = 0
    for count, reconstruction in enumerate(reconstructions, start=1):
        if count <= len(originals):
            yield originals[count - 1], reconstruction
    if count != len(originals):
        raise InputError(
            "`reconstructions` must hold one picture for each original. Received: "
            f"{count} for {len(originals)}."
        )


def _map_in_chunks(pool, function, items, size=64):
    """`pool.map` that draws from `items` a chunk at a time: it would empty a generator at once."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield from pool.map(function, chunk)


def _with_intervals(scores, subjects, seed):
    summary = {}
    for name in SCORES:
        mean, low, high = subject_bootstrap_interval(scores[name], subjects, seed)
        summary |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return summary
