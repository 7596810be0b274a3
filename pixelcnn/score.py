"""Scores of slices under a prior: what each costs, and maps of what is unlike the training."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainslices.data.code_grids import CodeGrids
from brainslices.data.crop import CropBox
from brainslices.data.slices import Slices, open_slices
from brainslices.data.subject_table import SubjectTable, load_subjects
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import subject_bootstrap_interval
from brainslices.resources import check_needed
from brainslices.runs.atomic import atomic_folder, check_output_dir
from brainslices.runs.json_files import write_json
from brainslices.types import PathLike
from brainslices.visualization.figures import pick_extremes
from brainslices.visualization.surprise import SurpriseRow, surprise_figure
from pixelcnn.conditions import add_subjects
from pixelcnn.config import ScoringConfig
from pixelcnn.sampling import BATCH_SIZE
from pixelcnn.slice_prior import SlicePrior
from pixelcnn.surprise import Surprise, in_batches, spread_over_pixels

__all__ = ["FILES", "Scored", "Scorer", "score", "summary"]

FILES = ("metrics.json", "slices.csv", "surprise.png", "surprise_maps.npy")
LABELS = {"best": "most", "median": "median", "worst": "least"}


@dataclass(frozen=True, eq=False)
class Scored:
    """Slices under a prior.

    Args:
        codes: int32 array of shape (n, r, c).
        nats: float32 array of shape (n, r, c), the cost of each code.
        surprise: float32 array of shape (n, r, c), the same beside what codes at that place and
            level cost on validation.
        percentiles: float64 array of shape (n,), of each slice's cost among validation slices of
            its level, 0 to 100.
    """

    codes: np.ndarray
    nats: np.ndarray
    surprise: np.ndarray
    percentiles: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        """Bits of each slice, float64 array of shape (n,)."""
        return self.nats.sum(axis=(1, 2), dtype="float64") / math.log(2)


class Scorer:
    """A trained prior with its validation slices.

    Args:
        prior: the prior; its decoder must have `encode_to_codes`, `crop` and `image_shape`, as a
            `VQVAE` has.
        grids: code grids of the decoder, whose split `validate` is compared with.
        table: attributes of the validation subjects, for a prior with conditions.
        batch_size: slices at a time.

    Raises:
        InputError: if the code grids are of another VQ-VAE.

    Example:
        >>> prior = SlicePrior.from_run("runs/prior")  # doctest: +SKIP
        >>> grids = CodeGrids.load("runs/vqvae/code_grids.npz")  # doctest: +SKIP
        >>> scorer = Scorer(prior, grids)  # doctest: +SKIP
        >>> scored = scorer(images, np.full(len(images), 0.5))  # doctest: +SKIP
        >>> maps = scorer.maps(scored.surprise)  # doctest: +SKIP
    """

    def __init__(
        self,
        prior: SlicePrior,
        grids: CodeGrids,
        table: SubjectTable | None = None,
        batch_size: int = BATCH_SIZE,
    ):
        expected = prior.provenance.metadata["vqvae_hash"]
        if grids.vqvae_hash != expected or "validate" not in grids.splits:
            raise InputError(
                "`codes` must be the code grids that the prior was trained on, of the VQ-VAE "
                f"{expected[:12]}. Received: those of {grids.vqvae_hash[:12]} ({grids.vqvae_run}), "
                f"splits {', '.join(grids.splits)}. Run encode_codes.py on the prior's VQ-VAE."
            )
        self.prior, self.decoder, self.batch_size = prior, prior.decoder, batch_size
        split = grids.splits["validate"]
        positions = self.with_conditions(split.positions, table, split.subjects)
        self.reference = Surprise(prior.model, split.codes, positions, split.subjects, batch_size)

    def with_conditions(
        self,
        positions: np.ndarray,
        table: SubjectTable | None,
        subjects: Sequence[str] | np.ndarray,
    ) -> np.ndarray:
        """Add the attributes of the subjects to positions, for a prior with conditions."""
        return add_subjects(self.prior.model.condition_variables, positions, table or {}, subjects)

    def __call__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        positions: np.ndarray,
        subjects: Sequence[str] | None = None,
    ) -> Scored:
        """Score slices.

        Args:
            images: sequence of float32 arrays of shape (rows, cols), in [0, 1].
            positions: float array of shape (n,), in [0, 1], or with conditions.
            subjects: subject of each slice; its own validation slices are not compared with.
        """
        subjects = np.full(len(images), "") if subjects is None else np.asarray(subjects)
        codes = in_batches(
            lambda rows: self.decoder.encode_to_codes(load(images, rows)),
            self.batch_size,
            "encoding",
            np.arange(len(images)),
        )
        nats = self.reference.nats(codes, positions, "scoring")
        return Scored(codes, nats, *self.reference.compare(nats, positions, subjects))

    def maps(self, values: np.ndarray) -> np.ndarray:
        """Spread values of codes (n, r, c) over the pixels of the images (n, rows, cols)."""
        crop = CropBox(*self.decoder.crop)
        return spread_over_pixels(values, crop, self.decoder.image_shape)

    def places(self, surprise: np.ndarray) -> np.ndarray:
        """Return the pixel (row, col) in the centre of each slice's most surprising code."""
        top, left, *sides = self.decoder.crop
        shape, flat = surprise.shape[1:], surprise.reshape(len(surprise), -1)
        cells = np.column_stack(np.unravel_index(flat.argmax(axis=1), shape))
        return ((cells + 0.5) * sides / shape + (top, left)).astype(int)


def load(images: Sequence[np.ndarray] | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Stack images of a sequence: float32 array of shape (len(rows), rows, cols, 1)."""
    return np.stack([images[row] for row in rows])[..., np.newaxis]


def score(
    run: PathLike,
    data: PathLike | Slices,
    out: PathLike,
    split: str | None = None,
    config: ScoringConfig | None = None,
) -> dict:
    """Score slices under a prior; the folder appears complete or not at all.

    Args:
        run: run folder of a trained prior.
        data: a slice archive, a folder of grey images, or opened slices.
        out: folder to write, new, empty or an earlier scoring: `metrics.json`, `slices.csv` (a row
            a slice), `surprise_maps.npy` (float16 of shape (slices, rows, cols), nats) and
            `surprise.png` (the most, the median and the least surprising slices).
        split: as in `open_slices`; unused for opened slices.
        config: options; None for the defaults.

    Returns:
        The contents of `metrics.json`.

    Raises:
        InputError: if the runs, the code grids, the data or the output folder cannot be used.
    """
    out, config = Path(out).resolve(), config or ScoringConfig()
    check_output_dir(out, FILES, "scoring")
    slices = data if isinstance(data, Slices) else open_slices(Path(data), split)
    prior = SlicePrior.from_run(run, config.vqvae)
    slices.check_shape(tuple(prior.decoder.image_shape), prior.provenance.run.path)
    count, pixels = len(slices), math.prod(prior.decoder.image_shape)
    check_needed(f"{count} slices", disk=2 * count * pixels, folder=out)
    grids = CodeGrids.load(config.codes or prior.provenance.run.code_grids_path)
    table = load_subjects(slices.path) if slices.archive_hash else {}
    of_validation = table if slices.archive_hash == grids.archive_hash else {}
    with atomic_folder(out) as folder:
        scorer = Scorer(prior, grids, of_validation, config.batch_size)
        positions = np.array([record.position for record in slices.records], "float32")
        positions = scorer.with_conditions(positions, table, slices.subjects)
        return _write(folder, scorer, slices, positions)


def _write(folder, scorer, slices, positions):
    scored = scorer(slices, positions, slices.subjects)
    _write_maps(folder / "surprise_maps.npy", scorer, scored.surprise)
    _write_table(folder / "slices.csv", slices, scored, scorer.places(scored.surprise))
    surprise_figure(folder / "surprise.png", list(_figure_rows(scorer, slices, scored)))
    metrics = {
        **_with_interval("bits_per_slice", scored.bits, slices.subjects),
        **_with_interval("nats_per_code", scored.nats.mean(axis=(1, 2)), slices.subjects),
        **_with_interval("surprise", scored.surprise.mean(axis=(1, 2)), slices.subjects),
        **_with_interval("percentile", scored.percentiles, slices.subjects),
        "nats_per_code_validate": float(scorer.reference.reference_nats.mean()),
        "subjects": len(set(slices.subjects)),
        "slices": len(slices),
        "split": slices.split,
        "archive_hash": slices.archive_hash,
        **{name: scorer.prior.provenance.metadata[name] for name in ("vqvae_hash", "prior_hash")},
    }
    write_json(folder / "metrics.json", metrics)
    return metrics


def _write_maps(path, scorer, values):
    shape = (len(values), *scorer.decoder.image_shape)
    maps = np.lib.format.open_memmap(path, "w+", "float16", shape)
    for start in range(0, len(values), scorer.batch_size):
        rows = slice(start, start + scorer.batch_size)
        maps[rows] = scorer.maps(values[rows])
    maps.flush()


def _write_table(path, slices, scored, places):
    columns = {
        "bits": scored.bits,
        "nats_per_code": scored.nats.mean(axis=(1, 2)),
        "surprise": scored.surprise.mean(axis=(1, 2)),
        "percentile": scored.percentiles,
        "most_surprise": scored.surprise.max(axis=(1, 2)),
        "row": places[:, 0],
        "col": places[:, 1],
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slice_id", "subject", "split", "position", *columns])
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        for record, row in zip(slices.records, values, strict=True):
            writer.writerow([record.slice_id, record.subject, record.split, record.position, *row])


def _figure_rows(scorer, slices, scored):
    """The most, the median and the least surprising slices, cut to what the codes cover."""
    crop = CropBox(*scorer.decoder.crop)
    for label, row in pick_extremes(scored.surprise.mean(axis=(1, 2))):
        pair = np.stack([slices[row], scorer.maps(scored.surprise[row : row + 1])[0]])
        original, surprise = crop.cut(pair)
        yield SurpriseRow(
            label=LABELS[label],
            slice_id=slices.records[row].slice_id,
            original=original,
            surprise=surprise,
            bits=scored.bits[row],
            percentile=scored.percentiles[row],
        )


def _with_interval(name, values, subjects):
    mean, low, high = subject_bootstrap_interval(values, subjects, seed=0)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def summary(metrics: dict) -> str:
    """Describe a scoring in two lines of text.

    Args:
        metrics: as `score` returns them.
    """

    def interval(name, digits):
        value, low, high = (metrics[name + end] for end in ("", "_low", "_high"))
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    return (
        f"{interval('bits_per_slice', 0)} bits per slice, {interval('nats_per_code', 3)} nats per "
        f"code, validation {metrics['nats_per_code_validate']:.3f}; "
        f"percentile among validation slices {interval('percentile', 0)}\n"
        f"{metrics['split'] or 'all images'}: {metrics['subjects']} subjects, "
        f"{metrics['slices']} slices; [95 % interval by subject]"
    )
