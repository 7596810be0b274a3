"""Memorisation: the nearest training slice of each sample by SSIM."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.metrics import structural_similarity

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.frechet import _cell_means
from brainslices.evaluation.image_metrics import WINDOW_RADIUS
from brainslices.progress import bar, track

__all__ = ["nearest_train"]
CANDIDATES, THUMBNAIL_SIDE = 32, 64


def nearest_train(
    images: np.ndarray,
    archive: SliceArchive,
    *,
    candidates: int = CANDIDATES,
    description: str = "nearest training slices",
) -> tuple[np.ndarray, np.ndarray]:
    """The training slice most like each picture: a sample that is one was learnt by heart.

    The `candidates` training slices nearest by the L2 distance of 64 x 64 thumbnails are compared
    by SSIM; the archive is read a chunk at a time.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1], of the archive's size.
        archive: the slice archive.
        candidates: how many slices are compared by SSIM for each picture.
        description: what the progress bar says.

    Returns:
        Row numbers in the archive, int64 of shape (n,), and their reported SSIM (the `ssim` of
        `brainslices.evaluation.image_metrics`), float64 of shape (n,).

    Raises:
        InputError: the pictures are not of the archive's size, or it has no training slices.
    """
    _check_images(images, archive)
    nearest = _nearest_by_thumbnail(images, archive, candidates)

    def best(number):
        rows = np.sort(nearest[number])
        scores = _ssim_with_each(images[number], archive.load(rows)[..., 0])
        return rows[scores.argmax()], scores.max()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(best, range(len(images)))
        rows, scores = zip(*track(found, len(images), description, "slices"), strict=True)
    return np.array(rows, "int64"), np.array(scores, "float64")


def _thumbnails(images):
    cells = min(THUMBNAIL_SIDE, *images.shape[1:])
    return _cell_means(images, cells).reshape(len(images), -1).astype("float32")


def _nearest_by_thumbnail(images, archive, count, chunk=256):
    rows = archive.indices("train")
    wanted = np.concatenate(
        [_thumbnails(images[k : k + chunk]) for k in range(0, len(images), chunk)]
    )
    best_rows = np.empty((len(images), 0), "int64")
    best_distances = np.empty((len(images), 0))
    with bar(len(rows), "thumbnails", "slices") as shown:
        for start in range(0, len(rows), chunk):
            some = rows[start : start + chunk]
            thumbnails = _thumbnails(archive.load(some)[..., 0])
            # |a - b|^2 without |a|^2, which orders nothing.
            distances = np.square(thumbnails).sum(axis=1) - 2 * wanted @ thumbnails.T
            distances = np.hstack([best_distances, distances])
            numbers = np.hstack([best_rows, np.broadcast_to(some, (len(images), len(some)))])
            order = np.argsort(distances, axis=1, kind="stable")[:, :count]
            best_distances = np.take_along_axis(distances, order, axis=1)
            best_rows = np.take_along_axis(numbers, order, axis=1)
            shown.update(len(some))
    return best_rows


def _ssim_with_each(image, others):
    """Reported SSIM of a picture with others, worked out only where one of them is not black.

    Where both are black the map is 1; so the mean over a box around all content tells the whole.
    """
    content = (image != 0) | (others != 0).any(axis=0)
    inner_size = np.prod(np.array(image.shape) - 2 * WINDOW_RADIUS)
    box, box_inner_size = [], 1
    for axis, size in enumerate(image.shape):
        inside = np.flatnonzero(content.any(axis=1 - axis))
        low, high = (inside[0], inside[-1] + 1) if inside.size else (0, size)
        # One radius for the windows that reach into the content, one that the mean leaves out.
        low, high = max(low - 2 * WINDOW_RADIUS, 0), min(high + 2 * WINDOW_RADIUS, size)
        box.append(slice(low, high))
        box_inner_size *= high - low - 2 * WINDOW_RADIUS
    cut, share = image[tuple(box)].astype("float64"), box_inner_size / inner_size
    scores = [
        structural_similarity(
            other[tuple(box)].astype("float64"),
            cut,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for other in others
    ]
    return 1 - (1 - np.array(scores)) * share


def _check_images(images, archive):
    if np.ndim(images) != 3 or images.shape[1:] != tuple(archive.image_shape):
        raise InputError(
            f"`images` must have shape (n, {archive.image_shape[0]}, {archive.image_shape[1]}), "
            f"the archive's size. Received: shape {np.shape(images)}."
        )
