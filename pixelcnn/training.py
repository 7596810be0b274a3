"""Training of stage two: from code grids to a run folder."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from brainslices.data.batches import Batches
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, nats_by_position
from brainslices.data.subject_table import SubjectTable
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import bits_per_pixel_raw
from brainslices.progress import bar
from brainslices.runs.run import Run
from brainslices.tables import format_table
from brainslices.training.pipeline import input_pipeline
from brainslices.training.stage import Objective, Stage, run_training
from brainslices.types import PathLike
from pixelcnn.conditions import UNKNOWN, Variable, add_subjects, find_variables
from pixelcnn.config import PixelCNNConfig, PixelCNNTraining
from pixelcnn.model import PixelCNN

__all__ = ["CodeBatches", "build_model", "measure_rate", "summary", "train"]

OBJECTIVE = Objective("val_nats_per_code", "min")
# Share of the training grids that hide all conditions; and, of the others, each condition.
HIDDEN_SHARE = 0.1


class CodeBatches(Batches):
    """Batches of code grids: `{"codes", "position"}`, the inputs of a `PixelCNN`.

    With a seed also `"augmentation"`, which grids are mirrored, and which are shifted.

    Args:
        split: the grids, with the positions of their slices, or positions and conditions; with a
            seed, conditions are hidden at random, so that the model learns every subset of them.
        batch_size: grids in a batch.
        seed: as in `Batches`.
        variants: uint16 array of shape (variants, n, r, c), the codes of augmented copies of the
            same slices; with a seed each grid is replaced at random by one of its variants.
        **options: `epoch`, `first_step`, `devices` and `shard` of `Batches`.
    """

    def __init__(
        self,
        split: SplitCodes,
        batch_size: int,
        seed: int | None = None,
        variants: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(len(split.codes), batch_size, seed, **options)
        self.split = split
        self.variants = split.codes[:0, None] if variants is None else variants

    def sample_augmentation(self, count, rng):
        # The variant that replaces each grid; -1 for none.
        variants = rng.integers(-1, len(self.variants), count)
        return np.column_stack([variants, *self._sample_hidden(count, rng)])

    def _sample_hidden(self, count, rng):
        """For each condition, which grids hide it: at random one by one, or all together."""
        inputs = self.split.positions
        if inputs.ndim == 1:
            return []
        all_hidden = rng.random(count) < HIDDEN_SHARE
        return [all_hidden | (rng.random(count) < HIDDEN_SHARE) for _ in range(inputs.shape[1] - 1)]

    def load(self, indices, augmentation):
        codes = self.split.codes[indices].astype("int32")
        position = self.split.positions[indices]
        if augmentation is None:
            return {"codes": codes, "position": position}
        variants, hidden = augmentation[:, 0], augmentation[:, 1:].astype(bool)
        (augmented,) = np.nonzero(variants >= 0)
        codes[augmented] = self.variants[variants[augmented], indices[augmented]]
        if hidden.size:
            position[:, 1:][hidden] = UNKNOWN
        # As `vqvae.encode.augment` numbers the variants, from 1.
        number = variants + 1
        flags = np.column_stack([number % 2, number >= 2]).astype("float32")
        return {"codes": codes, "position": position, "augmentation": flags}


def train(
    grids: CodeGrids,
    run: PathLike,
    config: PixelCNNConfig,
    training: PixelCNNTraining,
    subjects: SubjectTable | None = None,
) -> dict:
    """Train a prior on code grids, or resume the training.

    Args:
        grids: the codes of a VQ-VAE's slices, with at least `training.variants` variants.
        run: the run folder; created if missing.
        config: the model.
        training: the training's hyperparameters.
        subjects: the archive's table of subjects, for `config.conditions`.

    Returns:
        The run's metrics: the cost of a code on each split, and its entropy without a prior.

    Raises:
        InputError: if the code grids or the run folder cannot be used; nothing is changed then.
        KeyboardInterrupt: interrupted by the user; a checkpoint was written.
    """
    _check_grids(grids, training)
    run = Run(run)
    variables, grids = _with_conditions(config.conditions, grids, subjects or {})
    train_split, validation_split = grids.splits["train"], grids.splits["validate"]

    def prepare(**sharding):
        model = build_model(grids, config, training.seed, variables)
        size, variants = training.batch_size, grids.variants[: training.variants]
        batches = CodeBatches(train_split, size, training.seed, variants, **sharding)
        return model, batches, CodeBatches(validation_split, size, **sharding)

    stage = Stage(
        kind="pixelcnn",
        model=config,
        objective=OBJECTIVE,
        provenance=_provenance(grids, variables),
        metadata={"archive_hash": grids.archive_hash},
        sample_counts=(len(train_split.codes), len(validation_split.codes)),
        prepare=prepare,
        measure=lambda model, progress: _metrics(run, grids, progress, training.batch_size),
    )
    return run_training(run, stage, training)


def _provenance(grids, variables):
    """Return what `config.json` says of the training data; with a hash of the conditions."""
    inputs = grids.splits["train"].positions
    provenance = {
        "positions": np.unique(inputs if inputs.ndim == 1 else inputs[:, 0]).tolist(),
        "archive_hash": grids.archive_hash,
        "vqvae_hash": grids.vqvae_hash,
        "vqvae_run": grids.vqvae_run,
    }
    if variables:
        digest = hashlib.sha256(repr(variables).encode())
        for split in grids.splits.values():
            digest.update(split.positions.tobytes())
        provenance["conditions_hash"] = digest.hexdigest()
    return provenance


def _with_conditions(names, grids, subjects):
    """Return the variables of the conditions, and the grids with the conditions of each slice.

    The positions then have shape (slices, 1 + conditions).
    """
    variables = find_variables(names, subjects, grids.splits["train"].subjects)
    if not variables:
        return variables, grids
    splits = {
        name: dataclasses.replace(
            split,
            positions=add_subjects(variables, split.positions, subjects, split.subjects),
        )
        for name, split in grids.splits.items()
    }
    return variables, dataclasses.replace(grids, splits=splits)


def _check_grids(grids, training):
    for split in ("train", "validate"):
        if split not in grids.splits:
            raise InputError(
                f"The code grids of {grids.vqvae_run} have no slices in the split {split!r}. "
                "Prepare an archive with other --fractions or more subjects."
            )
    if len(grids.variants) < training.variants:
        raise InputError(
            f"`variants` must be at most {len(grids.variants)}, the number in the code grids of "
            f"{grids.vqvae_run}. Received: variants={training.variants}. Encode more variants."
        )


def build_model(
    grids: CodeGrids, config: PixelCNNConfig, seed: int, variables: Sequence[Variable] = ()
) -> PixelCNN:
    """Build an untrained model for the code grids of a VQ-VAE.

    Args:
        grids: the code grids.
        config: the model.
        seed: seeds the dropout.
        variables: kinds and ranges of the model's conditions.
    """
    parameters = dataclasses.asdict(config)
    model = PixelCNN(
        grids.grid_shape,
        grids.num_embeddings,
        seed=seed,
        condition_variables=variables,
        **parameters,
    )
    model.build()
    return model


def measure_rate(model: PixelCNN, grids: CodeGrids, split: SplitCodes, batch_size: int) -> dict:
    """Measure the rate of a split's codes under a prior.

    Args:
        model: the prior.
        grids: the code grids that the split belongs to.
        split: the codes.
        batch_size: grids at a time.

    Returns:
        `nats_per_code`, `bits_per_slice`, and `bits_per_pixel_prior` over the source's pixels;
        `nats_per_code_by_position`, the cost without a prior.
    """
    if not model.compiled:
        model.compile()
    with bar(count := len(split.codes), "measuring the rate", "slices") as progress_bar:
        step = keras.callbacks.LambdaCallback(
            on_test_batch_end=lambda batch, logs: progress_bar.update(
                min(batch_size, count - progress_bar.n)
            )
        )
        data = input_pipeline(CodeBatches(split, batch_size))
        scores = model.evaluate(data, verbose=0, callbacks=[step], return_dict=True)
    bits = scores["nats_per_code"] / math.log(2) * math.prod(grids.grid_shape)
    train_codes = grids.splits["train"].codes
    return {
        "nats_per_code": scores["nats_per_code"],
        "bits_per_slice": bits,
        "bits_per_pixel_prior": bits / math.prod(grids.image_shape),
        "nats_per_code_by_position": nats_by_position(
            split.codes, train_codes, grids.num_embeddings
        ),
    }


def _metrics(run, grids, progress, batch_size):
    model = PixelCNN.from_run(run)
    splits = {
        name: measure_rate(model, grids, split, batch_size) for name, split in grids.splits.items()
    }
    raw = bits_per_pixel_raw(grids.grid_shape, grids.num_embeddings, grids.image_shape)
    return {
        "split": "validate",
        "epoch": OBJECTIVE.best_epoch(progress.history),
        "epochs": progress.epoch,
        **splits["validate"],
        "bits_per_pixel_raw": raw,
        "splits": splits,
        **_condition_gain(model, grids, batch_size),
        "entropy": entropy(grids.splits["train"].codes, grids.num_embeddings),
        "seconds": progress.seconds,
    }


def _condition_gain(model, grids, batch_size):
    """Nats per code with the conditions unknown, and with those of another subject."""
    if not model.condition_variables:
        return {}
    split = grids.splits.get("test", grids.splits["validate"])
    unknown, others = split.positions.copy(), split.positions.copy()
    unknown[:, 1:] = UNKNOWN
    replaced = {"unknown": unknown}
    names, first, own = np.unique(split.subjects, return_index=True, return_inverse=True)
    if len(names) > 1:  # a single subject has no other
        others[:, 1:] = split.positions[first[(own + 1) % len(names)], 1:]
        replaced["shuffled"] = others
    return {
        f"nats_per_code_{name}_conditions": measure_rate(
            model, grids, dataclasses.replace(split, positions=positions), batch_size
        )["nats_per_code"]
        for name, positions in replaced.items()
    }


def summary(metrics: dict) -> str:
    """Format the metrics of a training as a text table.

    Args:
        metrics: the return value of `train`.
    """
    rows = [("split", "nats/code", "bits/code", "bits/slice", "bits/pixel")]
    for name, split in metrics["splits"].items():
        nats, bits = split["nats_per_code"], split["bits_per_slice"]
        rate = f"{split['bits_per_pixel_prior']:.4f}"
        rows.append((name, f"{nats:.4f}", f"{nats / math.log(2):.4f}", f"{bits:.1f}", rate))
    baseline = metrics["nats_per_code_by_position"]
    gain = 1 - metrics["nats_per_code"] / baseline
    conditions = ""
    if "nats_per_code_unknown_conditions" in metrics:
        name, split = next(reversed(metrics["splits"].items()))
        conditions = (
            f"{name} nats per code: {split['nats_per_code']:.4f} with the conditions, "
            f"{metrics['nats_per_code_unknown_conditions']:.4f} unknown"
        )
        if "nats_per_code_shuffled_conditions" in metrics:
            shuffled = metrics["nats_per_code_shuffled_conditions"]
            conditions += f", {shuffled:.4f} of another subject"
        conditions += "\n"
    return (
        f"{format_table(rows, '<>')}\n{conditions}"
        f"best epoch {metrics['epoch']} of {metrics['epochs']}: validation "
        f"{abs(gain):.1%} {'under' if gain >= 0 else 'over'} the cost by position alone "
        f"({baseline:.4f} nats), {metrics['bits_per_pixel_raw']:.4f} bits per pixel raw"
    )
