"""From sampled code grids to a folder: pictures, contact sheet, codes and figures of merit."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from brainslices.data.archive import SliceArchive
from brainslices.data.crop import CropBox
from brainslices.errors import InputError
from brainslices.evaluation.generation_metrics import check_comparable, evaluate_samples
from brainslices.evaluation.nearest import nearest_train
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.visualization.contact_sheets import contact_sheet

__all__ = ["FILES", "spread_positions", "summary", "write_samples"]

FILES = ("metrics.json", "contact_sheet.png", "codes.npz", "slices")
# Levels of the head that samples are spread over, and the most that a contact sheet shows.
LEVELS, SHOWN = 32, 96
MEASURES = {
    "pairwise_ms_ssim": "MS-SSIM between samples",
    "nearest_train_ssim": "SSIM to nearest training slice",
    "frechet_distance": "Frechet distance to test",
    "foreground_area_difference": "foreground area, difference",
    "intensity_quantile_difference": "intensity quantiles, difference",
}


def spread_positions(
    count: int,
    trained: tuple[float, float],
    asked: tuple[float, ...] = (),
    at_each: int = 1,
) -> np.ndarray:
    """The positions at which slices are sampled.

    Args:
        count: number of slices.
        trained: lowest and highest position of the training slices.
        asked: the positions wanted, which the slices take in turn; none spreads the slices evenly
            over the trained range, on at most 32 levels.
        at_each: slices at a level, at least, where none are asked for: measures of diversity
            compare those of one level.

    Returns:
        float32 array of shape (count,), rising.

    Raises:
        InputError: if the count is not positive, or a position is outside the trained range.
    """
    if count < 1:
        raise InputError(f"`count` must be at least 1. Received: count={count}.")
    low, high = trained
    for position in asked:
        # In float32, as archives hold positions: 0.65 is a little more than 0.65 there.
        if not np.float32(low) <= np.float32(position) <= np.float32(high):
            raise InputError(
                f"`position` must be in the head as the prior knows it, from {low:g} (lowest) to "
                f"{high:g} (highest). Received: position={position:g}."
            )
    levels = max(1, min(count // at_each, LEVELS))
    # A single level lies in the middle.
    spread = np.linspace(low, high, levels) if levels > 1 else [(low + high) / 2]
    return np.sort(np.resize(asked or spread, count)).astype("float32")


def write_samples(
    out: Path,
    drawn: Iterable[Mapping[str, np.ndarray]],
    decode: Callable[[np.ndarray], np.ndarray],
    positions: np.ndarray,
    facts: Mapping[str, object],
    *,
    crop: CropBox,
    archive: SliceArchive | None = None,
    nearest: bool = False,
    evaluate: bool = False,
    original: np.ndarray | None = None,
) -> dict:
    """Write samples as they are drawn; the folder appears complete or not at all.

    Args:
        out: folder to write: new, empty, or an earlier sampling, which is replaced. `slices/`
            holds the pictures (8-bit grey PNGs), `contact_sheet.png` at most `SHOWN` of them,
            `codes.npz` the code grids, `metrics.json` what is returned.
        drawn: batches of `{"codes", "log_prob"}`, each of shape (batch, r, c).
        decode: codes (batch, r, c) -> float32 pictures (batch, rows, cols, 1) in [0, 1].
        positions: float array of shape (samples,), in [0, 1].
        facts: what the samples were drawn with, `seed` among it.
        crop: the part of a picture that the contact sheet shows.
        archive: the training slices, for the two that follow.
        nearest: show each sample beside its nearest training slice.
        evaluate: measure the samples beside real slices.
        original: picture (rows, cols) that was completed, shown beside each completion.

    Raises:
        InputError: if the folder holds something else, or the archive has too little to compare
            the samples with.
    """
    out = Path(out).resolve()
    check_output_dir(out, FILES, "sampling")
    if evaluate:
        check_comparable(positions, archive, facts["seed"])
    with atomic_folder(out) as new:
        # Positions rise: those shown are taken from all over, not from the lowest alone.
        shown = np.linspace(0, len(positions) - 1, min(len(positions), SHOWN)).round().astype(int)
        # Pictures are measured all together; else no more are kept than the sheet shows.
        kept = np.arange(len(positions)) if evaluate else shown
        codes, log_prob, images = _write_pictures(new / "slices", drawn, decode, positions, kept)
        metrics = {"samples": len(codes), **facts}
        if original is None:  # else most codes were given
            metrics["nats_per_code_samples"] = float(-log_prob.mean())
        found = None
        if evaluate:
            measured = evaluate_samples(images, positions, archive, seed=facts["seed"])
            images, found = images[shown], [each[shown] for each in measured.pop("nearest")]
            metrics |= measured
        beside = _beside(images, crop, original, archive if nearest else None, found)
        labels = [f"position {position:.2f}" for position in positions[shown]]
        contact_sheet(new / "contact_sheet.png", crop.cut(images), labels, beside)
        np.savez(new / "codes.npz", codes=codes, positions=positions, log_prob=log_prob)
        write_json(new / "metrics.json", metrics)
    return metrics


def _beside(images, crop, original, archive, found):
    """What the sheet shows beside each picture: the original, or its nearest training slice."""
    if original is not None:
        return [(crop.cut(original[None])[0], "original")] * len(images)
    if archive is None:
        return None
    rows, scores = found or nearest_train(images, archive)
    pictures = crop.cut(archive.load(rows)[..., 0])
    labels = [
        f"{archive.index[row].slice_id}\nSSIM {score:.3f}"
        for row, score in zip(rows, scores, strict=True)
    ]
    return list(zip(pictures, labels, strict=True))


def _write_pictures(folder, drawn, decode, positions, kept):
    """Writes all pictures; gives all codes and log-probabilities, and the pictures `kept`."""
    folder.mkdir()
    codes, log_prob, images, number = [], [], [], 0
    for batch in drawn:
        for image in np.rint(decode(batch["codes"])[..., 0] * 255).astype("uint8"):
            name = f"sample_{number:04d}_position_{positions[number]:.3f}.png"
            Image.fromarray(image).save(folder / name)
            if number in kept:
                images.append(image)
            number += 1
        codes.append(batch["codes"].astype("uint16"))
        log_prob.append(batch["log_prob"])
    return np.concatenate(codes), np.concatenate(log_prob), np.stack(images) / np.float32(255)


def summary(metrics: Mapping[str, object]) -> str:
    """The measurement of samples as a table of text, or one line where they were not measured.

    Args:
        metrics: as `write_samples` returns it.
    """
    temperature = f"at temperature {metrics['temperature']:g}"
    if "completed" in metrics:
        place = f"position {metrics['position']:.2f}, {temperature}"
        return f"{metrics['samples']} completions of {metrics['completed']}, {place}"
    nats = f"{metrics['nats_per_code_samples']:.3f} nats per code"
    line = f"{metrics['samples']} samples {temperature}, {nats}"
    if "frechet_distance" not in metrics:
        return line
    line += "; real: real slices of the same levels"
    rows = [f"{'':32} {'samples':>9} {'real':>9}"]
    for name, words in MEASURES.items():
        rows.append(f"{words:32} {metrics[name]:9.4f} {metrics[name + '_real']:9.4f}")
    return "\n".join([line, *rows])
