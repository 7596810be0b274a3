"""How well the maps of a prior find synthetic lesions, compared with maps that need no prior."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from brainslices.data.batches import in_batches
from brainslices.data.slices import Slices
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import named_interval
from brainslices.evaluation.detection import PixelCounts, subject_auroc
from brainslices.evaluation.lesions import LESIONS, Lesion, head_mask
from brainslices.progress import track
from brainslices.tables import format_interval, format_table
from pixelcnn.scorer import Scorer

__all__ = ["MEASURES", "measure_lesions", "summary"]

MEASURES = ("auroc", "average_precision", "dice")
# The most slices that get lesions, spread evenly over the split.
MAX_SLICES = 64
# Chosen on validation slices: the Gaussian that smooths every map, and the pixels of a slice whose
# mean is the slice's score.
SIGMA, TOP_PIXELS = 3.0, 50


def measure_lesions(
    scorer: Scorer, slices: Slices, positions: np.ndarray, restorations: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """Put synthetic lesions into slices, and measure how well maps find them.

    Args:
        scorer: the prior.
        slices: slices without lesions; at most `MAX_SLICES` of them, spread evenly, are used.
        positions: float array of shape (slices,), in [0, 1], or with conditions.
        restorations: restorations of each slice; 0 leaves the restoration maps out.
        seed: seed of the lesions' positions and of the restorations.

    Returns:
        For each kind of lesion and each map: `lesion`, `size`, `contrast`, `map`, `slices`, and
        `auroc` (slices with a lesion against the same slices without), `average_precision` and
        `dice` (pixels inside the head) with `_low` and `_high`, 95 % intervals by subject; and
        `average_precision_chance`.

    Raises:
        InputError: if no slice has room for a lesion.
    """
    chosen = np.linspace(0, len(slices) - 1, min(len(slices), MAX_SLICES)).round().astype(int)
    images = np.stack([slices[row] for row in chosen])
    positions, subjects = positions[chosen], np.array(slices.subjects)[chosen]
    heads = np.stack([head_mask(image) for image in images])
    has_head = heads.any(axis=(1, 2))
    if not has_head.any():
        raise _no_room(slices)
    images, heads, positions = images[has_head], heads[has_head], positions[has_head]
    subjects = subjects[has_head]
    options = restorations, seed
    healthy = _maps(scorer, images, positions, subjects, options)
    rows = []
    for number, lesion in enumerate(track(LESIONS, len(LESIONS), "lesions", "kinds")):
        changed, masks, lesion_rows = _add_lesions(lesion, images, seed, number)
        if not len(lesion_rows):
            continue
        lesioned = _maps(scorer, changed, positions[lesion_rows], subjects[lesion_rows], options)
        for name, maps in lesioned.items():
            scores = _measure(healthy[name], maps, masks, heads, lesion_rows, subjects)
            rows.append({**_describe(lesion), "map": name, "slices": len(lesion_rows), **scores})
    if not rows:
        raise _no_room(slices)
    return rows


def _no_room(slices):
    return InputError(f"No head in {slices.path} has room for a lesion. Leave --lesions out.")


def _describe(lesion):
    return {"lesion": lesion.kind, "size": lesion.size, "contrast": lesion.contrast}


def _add_lesions(lesion, images, seed, number):
    """Add a lesion to each image that has room: the images, the masks and the images' rows."""
    added = [
        lesion.add_to(image, np.random.default_rng([seed, number, row]))
        for row, image in enumerate(images)
    ]
    kept = np.array([row for row, pair in enumerate(added) if pair is not None], int)
    pairs = [pair for pair in added if pair is not None]
    changed = np.stack([image for image, _ in pairs]) if pairs else images[:0]
    return changed, np.array([mask for _, mask in pairs], bool), kept


def _maps(scorer, images, positions, subjects, options):
    """Smoothed anomaly maps of images, by name."""
    restorations, seed = options
    scored = scorer(images, positions, subjects, silent=True)
    decode, size = scorer.decoder.decode_codes, scorer.batch_size
    decoded = in_batches(decode, size, None, scored.codes)[..., 0]
    grey = [np.median(image[head_mask(image)]) for image in images]
    maps = {"surprise": scorer.maps(scored.surprise)}
    if restorations:
        restored = scorer.restoration_maps(images, positions, scored, restorations, seed)
        maps["restoration"] = np.stack(list(restored))
    predicted = scorer.prediction.maps(images, scored.codes, positions)
    maps["prediction"] = np.stack(list(predicted))
    maps["reconstruction error"] = np.abs(images - decoded)
    maps["intensity"] = np.abs(images - np.array(grey, "float32")[:, None, None])
    smoothed = maps.keys() - {"prediction"}  # it is smoothed already
    return {
        name: gaussian_filter(values, (0, SIGMA, SIGMA)) if name in smoothed else values
        for name, values in maps.items()
    }


def _slice_scores(maps, heads):
    """Mean of the highest pixels of each map inside the head."""
    return np.array(
        [
            np.sort(pixels[head])[-TOP_PIXELS:].mean()
            for pixels, head in zip(maps, heads, strict=True)
        ]
    )


def _measure(healthy, lesioned, masks, heads, kept, subjects):
    inside = heads[kept]
    numbers = np.unique(subjects[kept], return_inverse=True)[1]
    owners = np.broadcast_to(numbers[:, None, None], masks.shape)
    counts = PixelCounts(lesioned[inside], masks[inside], owners[inside])
    intervals = {
        "auroc": subject_auroc(
            _slice_scores(healthy, heads),
            _slice_scores(lesioned, inside),
            subjects,
            subjects[kept],
        ),
        "average_precision": counts.average_precision(),
        "dice": counts.best_dice(),
    }
    scores = {}
    for name, interval in intervals.items():
        scores |= named_interval(name, interval)
    return {**scores, "average_precision_chance": counts.chance}


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the areas under the ROC curve and the average precisions as two text tables.

    Args:
        rows: as `measure_lesions` returns them.
    """
    maps = list(dict.fromkeys(row["map"] for row in rows))
    tables = []
    for measure, title in (("auroc", "AUROC of slices"), ("average_precision", "AP of pixels")):
        lines = [(title, *maps, "chance")]
        for start in range(0, len(rows), len(maps)):
            group = rows[start : start + len(maps)]
            name = str(Lesion(*(group[0][key] for key in ("lesion", "size", "contrast"))))
            chance = 0.5 if measure == "auroc" else group[0]["average_precision_chance"]
            lines.append(
                (name, *(format_interval(row, measure, 3) for row in group), f"{chance:.3f}")
            )
        tables.append(format_table(lines))
    return "\n\n".join(tables)
