"""How sampled slices are measured: diversity, memorisation and likeness to real slices.

Each figure stands beside the same figure of real slices at the same positions of the head; a value
says little without it. NumPy, SciPy and scikit-image alone, at the source size.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from brainslices.archive import FOREGROUND_THRESHOLD, SliceArchive
from brainslices.errors import InputError
from brainslices.progress import bar, track

__all__ = [
    "QUANTILES",
    "check_comparable",
    "evaluate_samples",
    "features",
    "foreground_area",
    "foreground_area_difference",
    "frechet_distance",
    "intensity_quantile_difference",
    "intensity_quantiles",
    "matched_rows",
    "ms_ssim",
    "nearest_train",
    "pairwise_ms_ssim",
]

WINDOW_RADIUS = 5
# Wang, Simoncelli, Bovik 2003, section 3.2: the exponents of the five scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = 0.01**2, 0.03**2
# Half the distance of two slices where a head has 32, and an eighth of it.
SAME_LEVEL, SAME_HEIGHT = 1 / 64, 1 / 256
CANDIDATES, THUMBNAIL_SIDE = 32, 64
QUANTILES = np.linspace(0.05, 0.95, 19)
LAYOUT_CELLS, LAYOUT_FEATURES = 8, 24
TEXTURE_CELLS, TEXTURE_FEATURES = 2, 10
# Contrast about halves from a scale to the next finer one; so each varies as much between heads,
# and all together about as much as the layout does.
TEXTURE_GAINS = (16, 8, 4, 2)
KERNELS, KERNEL_SIDE = 8, 5
NETWORK_SEED, SMALLEST_SIDE = 2016, 64


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Multi-scale structural similarity of two pictures.

    Gaussian window, sigma 1.5, 11 pixels wide, data range 1, means over whole windows alone; each
    scale is the 2 x 2 mean of the finer one. Five scales need 176 pixels a side: smaller pictures
    are compared at as many scales as hold a window, the published weights divided by their sum.
    A negative term counts as 0.

    Args:
        first: float array of shape (rows, cols), intensities in [0, 1].
        second: the other picture, of the same shape.

    Returns:
        Similarity in [0, 1], 1 for equal pictures.

    Raises:
        InputError: the shapes differ, or a side is shorter than the window.

    Reference:
        Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality
        assessment", equation 7.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) <= 2 * WINDOW_RADIUS:
        raise InputError(
            "`first` and `second` must be pictures of one shape (rows, cols), at least "
            f"{2 * WINDOW_RADIUS + 1} pixels a side. Received: {first.shape} and {second.shape}."
        )
    scales = 1 + int(math.log2(min(first.shape) / (2 * WINDOW_RADIUS + 1)))
    weights = np.array(SCALE_WEIGHTS[:scales])
    terms = []
    for scale in range(len(weights)):
        if scale:
            first, second = _halved(first), _halved(second)
        luminance, contrast_structure = _similarity_terms(first, second)
        terms.append(np.mean(contrast_structure))
    terms[-1] = np.mean(luminance * contrast_structure)
    return float(np.prod(np.maximum(terms, 0) ** (weights / weights.sum())))


def pairwise_ms_ssim(
    images: np.ndarray,
    positions: Sequence[float],
    subjects: Sequence[str] | None = None,
    *,
    pairs: int = 1000,
    seed: int = 0,
    description: str = "pairs",
) -> float:
    """Mean MS-SSIM of pairs at one level of the head: the lower, the more diverse the pictures.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].
        positions: the position of each in [0, 1]. Two pictures are at one level if theirs differ
            by at most 1 / 64, half the distance of neighbours where a head has 32 slices.
        subjects: whose head each is: pairs are of two subjects then. None makes each its own.
        pairs: how many pairs to compare at most, drawn at random from all there are.
        seed: seed of the draw.
        description: what the progress bar says.

    Raises:
        InputError: no two pictures are at one level.
    """
    chosen = _level_pairs(positions, subjects, pairs, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scored = pool.map(lambda pair: ms_ssim(images[pair[0]], images[pair[1]]), chosen)
        return float(np.mean(list(track(scored, len(chosen), description, "pairs"))))


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
        `brainslices.metrics`), float64 of shape (n,).

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


def features(images: np.ndarray) -> np.ndarray:
    """Features of pictures by a small random network that is never trained.

    Layout: the means of 8 x 8 cells, mixed down to 24 numbers. Texture, at each of 4 scales (each
    the 2 x 2 mean of the finer one): the responses to 8 random kernels of 5 x 5 without a mean,
    rectified, averaged over 2 x 2 cells and mixed down to 10 numbers. Kernels and mixtures come
    from one fixed seed. 64 numbers, so that a few hundred pictures still have a covariance.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n, 64).

    Raises:
        InputError: a side is shorter than 64 pixels: the coarsest scale would be too small.
    """
    if np.ndim(images) != 3 or min(images.shape[1:]) < SMALLEST_SIDE:
        raise InputError(
            f"`images` must have shape (n, rows, cols), at least {SMALLEST_SIDE} pixels a side. "
            f"Received: shape {np.shape(images)}."
        )
    kernels, layout_mixture, texture_mixtures = _network()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(
            lambda image: _feature_row(image, kernels, layout_mixture, texture_mixtures), images
        )
        return np.stack(list(rows))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features, each taken as a Gaussian.

    |m1 - m2|^2 + trace(c1 + c2 - 2 (c1 c2)^(1/2)), of means m and covariances c. It grows as the
    sets shrink: compare only distances between equally many pictures.

    Args:
        first: float array of shape (n, features), n at least 2.
        second: float array of shape (m, features).

    Returns:
        The distance, squared as the field reports it, at least 0.

    Raises:
        InputError: a set has fewer than 2 rows, or the numbers of features differ.

    Reference:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule", equation 6.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            "Feature sets must have shape (n, features) with n at least 2 and one number of "
            f"features. Received: shapes {first.shape} and {second.shape}."
        )
    shift = np.sum(np.square(first.mean(axis=0) - second.mean(axis=0)))
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # The eigenvalues of c1 c2 are the squared singular values of c1^(1/2) c2^(1/2).
    cross = np.linalg.norm(_symmetric_root(one) @ _symmetric_root(other), "nuc")
    return float(max(shift + np.trace(one) + np.trace(other) - 2 * cross, 0))


def foreground_area(images: np.ndarray) -> np.ndarray:
    """Share of each picture's pixels above `FOREGROUND_THRESHOLD`.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n,) in [0, 1].
    """
    return np.array([np.mean(image > FOREGROUND_THRESHOLD) for image in images], "float64")


def intensity_quantiles(images: np.ndarray) -> np.ndarray:
    """Quantiles 0.05, 0.10 .. 0.95 of each picture's foreground intensities.

    Args:
        images: float array of shape (n, rows, cols) in [0, 1].

    Returns:
        float64 array of shape (n, 19), not a number where a picture has no foreground.
    """
    quantiles = np.full((len(images), len(QUANTILES)), np.nan)
    for row, image in zip(quantiles, images, strict=True):
        foreground = image[image > FOREGROUND_THRESHOLD]
        if foreground.size:
            row[:] = np.quantile(foreground, QUANTILES)
    return quantiles


def foreground_area_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Absolute difference of two sets' mean foreground areas, a share of the picture."""
    return float(abs(foreground_area(first).mean() - foreground_area(second).mean()))


def intensity_quantile_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two sets' mean intensity quantiles, in [0, 1].

    Pictures without foreground are left out; not a number where a set has no other.
    """
    means = []
    for images in (first, second):
        quantiles = intensity_quantiles(images)
        quantiles = quantiles[~np.isnan(quantiles[:, 0])]
        if not len(quantiles):
            return math.nan
        means.append(quantiles.mean(axis=0))
    return float(np.mean(np.abs(means[0] - means[1])))


def matched_rows(
    archive: SliceArchive, split: str, positions: Sequence[float], seed: int = 0
) -> np.ndarray:
    """For each position a slice of a split at that level, of different subjects in turn.

    A slice comes a second time only when all others as near have come.

    Args:
        archive: the slice archive.
        split: which of its splits to take from.
        positions: float array of shape (n,). Taken are slices at the nearest position there is;
            those less than 1 / 256 further off count as equally near.
        seed: chooses among equals.

    Returns:
        Row numbers in the archive, int64 of shape (n,).

    Raises:
        InputError: the split is empty.
    """
    rows = archive.rows_of(split)
    heights = np.array([archive.index[row].position for row in rows])
    _, owners = np.unique([archive.index[row].subject for row in rows], return_inverse=True)
    lots = np.random.default_rng(seed).random(len(rows))
    taken, turns = np.zeros(len(rows), int), np.zeros(owners.max() + 1, int)
    chosen = []
    for position in positions:
        gaps = np.abs(heights - position)
        near = np.flatnonzero(gaps < gaps.min() + SAME_HEIGHT)
        best = near[np.lexsort((lots[near], turns[owners[near]], taken[near]))[0]]
        taken[best] += 1
        turns[owners[best]] += 1
        chosen.append(rows[best])
    return np.array(chosen, "int64")


def check_comparable(positions: Sequence[float], archive: SliceArchive, seed: int = 0) -> None:
    """Refuses samples that `evaluate_samples` could not measure, before they are drawn.

    Args:
        positions: the position each is to be sampled at, float array of shape (n,).
        archive: the slice archive whose training slices the models saw.
        seed: as there.

    Raises:
        InputError: as there.
    """
    if len(positions) < 2:
        raise InputError(f"Samples are measured from 2 on. Received: {len(positions)}.")
    matched_rows(archive, "test", positions, seed)
    rows = matched_rows(archive, "train", positions, seed)
    _level_pairs(positions, None, 1, seed)
    _level_pairs(positions, [archive.index[row].subject for row in rows], 1, seed)


def evaluate_samples(
    images: np.ndarray, positions: Sequence[float], archive: SliceArchive, *, seed: int = 0
) -> dict:
    """Measures samples, each figure beside the same figure of real slices at their positions.

    Args:
        images: float32 array of shape (n, rows, cols) in [0, 1], of the archive's size.
        positions: the position each was sampled at, float array of shape (n,).
        archive: the slice archive whose training slices the models saw.
        seed: chooses the real slices and the pairs.

    Returns:
        `pairwise_ms_ssim` (baseline: training slices of different subjects),
        `nearest_train_ssim` (test slices), `frechet_distance`, `foreground_area_difference` and
        `intensity_quantile_difference` (each to the test slices; baseline: as many training
        slices as samples), each with its baseline as `_real`; `samples`, their number; and
        `nearest`, the row and SSIM arrays of `nearest_train`, which is no number to report.

    Raises:
        InputError: fewer than 2 samples, none two at one level, a shape that is not the
            archive's, or an archive without training or test slices.
    """
    images, positions = np.asarray(images, "float32"), np.asarray(positions, "float64")
    _check_images(images, archive)
    if len(images) < 2 or positions.shape != (len(images),):
        raise InputError(
            "Samples are measured from 2 on, with a position each. Received: "
            f"{len(images)} pictures and positions of shape {positions.shape}."
        )
    train_rows = matched_rows(archive, "train", positions, seed)
    test_rows = matched_rows(archive, "test", positions, seed)
    train, test = (archive.load(rows)[..., 0] for rows in (train_rows, test_rows))
    subjects = [archive.index[row].subject for row in train_rows]
    diversity = {
        "pairwise_ms_ssim": pairwise_ms_ssim(
            images, positions, seed=seed, description="pairs of samples"
        ),
        "pairwise_ms_ssim_real": pairwise_ms_ssim(
            train, positions, subjects, seed=seed, description="pairs of real slices"
        ),
    }
    rows, scores = nearest_train(images, archive, description="nearest of samples")
    unique_test = archive.load(np.unique(test_rows))[..., 0]
    real_scores = nearest_train(unique_test, archive, description="nearest of test slices")[1]
    return {
        **diversity,
        "nearest_train_ssim": float(scores.mean()),
        "nearest_train_ssim_real": float(real_scores.mean()),
        **_distances(images, train, test),
        "samples": len(images),
        "nearest": (rows, scores),
    }


def _distances(images, train, test):
    sets = [features(each) for each in (images, train, test)]
    distances = {}
    for end, pictures, described in (("", images, sets[0]), ("_real", train, sets[1])):
        distances |= {
            f"frechet_distance{end}": frechet_distance(described, sets[2]),
            f"foreground_area_difference{end}": foreground_area_difference(pictures, test),
            f"intensity_quantile_difference{end}": intensity_quantile_difference(pictures, test),
        }
    return distances


def _check_images(images, archive):
    if np.ndim(images) != 3 or images.shape[1:] != tuple(archive.image_shape):
        raise InputError(
            f"`images` must have shape (n, {archive.image_shape[0]}, {archive.image_shape[1]}), "
            f"the archive's size. Received: shape {np.shape(images)}."
        )


def _blurred(image):
    """Means over the Gaussian windows that lie whole inside the picture."""
    inner = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return gaussian_filter(image, 1.5, radius=WINDOW_RADIUS)[inner, inner]


def _similarity_terms(first, second):
    """Luminance and contrast-structure maps. Reference: Wang et al. 2004, equations 6 and 13."""
    mean_first, mean_second = _blurred(first), _blurred(second)
    product = mean_first * mean_second
    squares = mean_first**2 + mean_second**2
    covariance = _blurred(first * second) - product
    variances = _blurred(first**2 + second**2) - squares
    luminance = (2 * product + LUMINANCE_CONSTANT) / (squares + LUMINANCE_CONSTANT)
    return luminance, (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)


def _halved(image):
    """2 x 2 means; an odd side's last line stands for its missing neighbour."""
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)), mode="edge")
    return image.reshape(-(-rows // 2), 2, -(-cols // 2), 2).mean(axis=(1, 3))


def _level_pairs(positions, subjects, pairs, seed):
    positions = np.asarray(positions, "float64")
    # Sums of fractions such as k / 31 must not decide about equality.
    level = np.abs(positions[:, np.newaxis] - positions) <= SAME_LEVEL + 1e-9
    if subjects is not None:
        subjects = np.unique(subjects, return_inverse=True)[1]
        level &= subjects[:, np.newaxis] != subjects
    found = np.argwhere(np.triu(level, k=1))
    if not len(found):
        whose = "" if subjects is None else " of two subjects"
        mend = "Sample more slices, or several at one position"
        if subjects is not None:
            mend += ", or make an archive of more subjects"
        raise InputError(
            f"Diversity wants at least two slices{whose} at one level of the head (positions at "
            f"most 1/64 apart). Received: {len(positions)} slices without such a pair. {mend}."
        )
    generator = np.random.default_rng(seed)
    return generator.permutation(found)[:pairs]


def _cell_means(images, cells):
    """Means over cells x cells about equal parts of axes 1 and 2."""
    for axis in (1, 2):
        size = images.shape[axis]
        starts = np.arange(cells) * size // cells
        shape = [cells if each == axis else 1 for each in range(images.ndim)]
        widths = np.diff(np.append(starts, size)).reshape(shape)
        images = np.add.reduceat(images, starts, axis=axis) / widths
    return images


def _thumbnails(images):
    cells = min(THUMBNAIL_SIDE, *images.shape[1:])
    return _cell_means(images, cells).reshape(len(images), -1).astype("float32")


def _nearest_by_thumbnail(images, archive, count, chunk=256):
    rows = archive.rows_of("train")
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


def _network():
    generator = np.random.default_rng(NETWORK_SEED)
    kernels = generator.standard_normal((KERNEL_SIDE**2, KERNELS))
    kernels -= kernels.mean(axis=0)
    kernels /= np.linalg.norm(kernels, axis=0)
    # Orthonormal columns: a mixture keeps distances up to one factor, on average.
    layout = np.linalg.qr(generator.standard_normal((LAYOUT_CELLS**2, LAYOUT_FEATURES)))[0]
    shape = (len(TEXTURE_GAINS), TEXTURE_CELLS**2 * KERNELS, TEXTURE_FEATURES)
    textures = np.linalg.qr(generator.standard_normal(shape))[0]
    return kernels, layout, textures * np.reshape(TEXTURE_GAINS, (-1, 1, 1))


def _feature_row(image, kernels, layout_mixture, texture_mixtures):
    image = np.asarray(image, "float64")
    row = [_cell_means(image[np.newaxis], LAYOUT_CELLS).ravel() @ layout_mixture]
    for scale, mixture in enumerate(texture_mixtures):
        if scale:
            image = _halved(image)
        patches = sliding_window_view(image, (KERNEL_SIDE, KERNEL_SIDE))[::2, ::2]
        responses = patches.reshape(1, *patches.shape[:2], -1) @ kernels
        row.append(_cell_means(np.abs(responses), TEXTURE_CELLS).ravel() @ mixture)
    return np.concatenate(row)


def _symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
