"""Memorisation: the nearest training slice of each sample by SSIM."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import find_objects
from skimage.metrics import structural_similarity

from brainslices.data.archive import SliceArchive
from brainslices.errors import InputError
from brainslices.evaluation.pooling import RADIUS, SIGMA, cell_means
from brainslices.progress import track

__all__ = ["NearestTrain"]

CANDIDATES, THUMBNAIL_SIDE, CHUNK = 32, 64, 256


class NearestTrain:
    """Find the training slice most like an image: a memorised sample is one.

    The 32 training slices nearest by the L2 distance of 64 x 64 thumbnails are compared by SSIM.
    The thumbnails take 16 kB of memory for each training slice.

    Args:
        archive: the slice archive.

    Call arguments:
        images: float array of shape (n, rows, cols) in [0, 1], of the archive's size.
        description: label of the progress bar; None shows none.

    Returns:
        Row numbers in the archive, int64 of shape (n,), and their reported SSIM (the `ssim` of
        `brainslices.evaluation.image_metrics`), float64 of shape (n,).

    Raises:
        InputError: if the images are not of the archive's size, or it has no training slices.
    """

    def __init__(self, archive: SliceArchive):
        from sklearn.neighbors import NearestNeighbors  # slow to import, and few commands need it

        self.archive, self.rows = archive, archive.indices("train")
        chunks = [self.rows[start : start + CHUNK] for start in range(0, len(self.rows), CHUNK)]
        thumbnails = [
            _thumbnails(archive.load(chunk)[..., 0])
            for chunk in track(chunks, len(chunks), "thumbnails", "chunks")
        ]
        count = min(CANDIDATES, len(self.rows))
        self.search = NearestNeighbors(n_neighbors=count, algorithm="brute")
        self.search.fit(np.concatenate(thumbnails))

    def __call__(
        self, images: np.ndarray, description: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest training slice of each image."""
        _check_shape(images, self.archive)
        indices = self.search.kneighbors(_thumbnails(images), return_distance=False)
        candidate_rows = np.sort(self.rows[indices])

        def best(index):
            rows = candidate_rows[index]
            scores = _ssim_with_each(images[index], self.archive.load(rows)[..., 0])
            return rows[scores.argmax()], scores.max()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(best, range(len(images)))
            if description:
                results = track(results, len(images), description, "slices")
            matched_rows, scores = zip(*results, strict=True)
        return np.array(matched_rows, "int64"), np.array(scores, "float64")


def _check_shape(images: np.ndarray, archive: SliceArchive) -> None:
    if np.ndim(images) != 3 or images.shape[1:] != tuple(archive.image_shape):
        rows, cols = archive.image_shape
        raise InputError(
            f"`images` must have shape (n, {rows}, {cols}), the archive's size. "
            f"Received: shape {np.shape(images)}."
        )


def _thumbnails(images):
    cells = min(THUMBNAIL_SIDE, *images.shape[1:])
    return cell_means(images, cells).reshape(len(images), -1).astype("float32")


def _ssim_with_each(image, others):
    """Reported SSIM of an image with others, computed only around what is not black.

    The SSIM map is 1 where both images are black, so a box around all content has all the rest.
    """
    content = (image != 0) | (others != 0).any(axis=0)
    box = find_objects(content.astype("uint8")) or [tuple(slice(0, side) for side in image.shape)]
    # One radius for the windows that reach into the content, one that the mean leaves out.
    box = tuple(
        slice(max(part.start - 2 * RADIUS, 0), min(part.stop + 2 * RADIUS, side))
        for part, side in zip(box[0], image.shape, strict=True)
    )
    image_cut = image[box].astype("float64")
    inner_sizes = [np.prod(np.array(x.shape) - 2 * RADIUS) for x in (image_cut, image)]
    scores = [
        structural_similarity(
            other[box].astype("float64"),
            image_cut,
            gaussian_weights=True,
            sigma=SIGMA,
            use_sample_covariance=False,
            data_range=1,
        )
        for other in others
    ]
    return 1 - (1 - np.array(scores)) * inner_sizes[0] / inner_sizes[1]
