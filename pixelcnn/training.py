"""Training of stage two: from code grids to a run folder."""

import dataclasses
import math
from pathlib import Path

import keras
import numpy as np

from brainslices.data.batches import Batches
from brainslices.data.code_grids import CodeGrids, SplitCodes, entropy, entropy_by_position
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import bits_per_pixel_raw
from brainslices.progress import bar
from brainslices.runs.run import Run
from brainslices.training.callbacks import best_epoch
from brainslices.training.checkpoint import TrainingProgress
from brainslices.training.loop import check_resumable, run_config, run_training
from pixelcnn.config import PixelCNNConfig, PixelCNNTraining
from pixelcnn.model import PixelCNN

__all__ = [
    "CodeBatches",
    "build_model",
    "check_run",
    "cost",
    "summary",
    "train",
]

GOAL = ("val_nats_per_code", "min")
KINDS = {"model": PixelCNNConfig, "training": PixelCNNTraining}


class CodeBatches(Batches):
    """Batches of code grids, `{"codes", "position"}` as a `PixelCNN` takes them.

    Args:
        split: the grids, with the positions of their slices.
        batch_size: grids in a batch.
        seed: as `Batches`.
        variants: uint16 array of shape (variants, n, r, c), the codes of augmented copies of the
            same slices; with a seed each slice comes as itself or as one of them.
        **options: `epoch`, `first_step` and `devices`, as `Batches`.
    """

    def __init__(
        self,
        split: SplitCodes,
        batch_size: int,
        seed: int | None = None,
        variants: np.ndarray | None = None,
        **options,
    ):
        super().__init__(len(split.codes), batch_size, seed, **options)
        self.split = split
        self.variants = split.codes[:0, None] if variants is None else variants

    def sample_augmentation(self, count, rng):
        # Which variant each grid comes as; -1 is the grid itself.
        return rng.integers(-1, len(self.variants), count)

    def load(self, chosen, draws):
        codes = self.split.codes[chosen].astype("int32")
        if draws is not None:
            (turned,) = np.nonzero(draws >= 0)
            codes[turned] = self.variants[draws[turned], chosen[turned]]
        return {"codes": codes, "position": self.split.positions[chosen]}


def check_run(path: Path, config: PixelCNNConfig, training: PixelCNNTraining) -> None:
    """Refuse a run folder that cannot be trained in, before slices are encoded for it.

    Args:
        path: the run folder.
        config: the model.
        training: how it is trained.

    Raises:
        InputError: if the folder holds another training, or something else.
    """
    check_resumable(Run(path), run_config("pixelcnn", config, training), KINDS)


def train(grids: CodeGrids, path: Path, config: PixelCNNConfig, training: PixelCNNTraining) -> dict:
    """Train a prior on code grids, or go on with a training that was stopped.

    Args:
        grids: the codes of a VQ-VAE's slices, with `training.variants` variants.
        path: the run folder, made if missing.
        config: the model.
        training: how it is trained.

    Returns:
        The run's metrics: what a code costs on each split, beside what it would cost without a
        prior.

    Raises:
        InputError: if the code grids or the run folder cannot be used; nothing is changed then.
        KeyboardInterrupt: stopped by the user, the state saved.
    """
    for split in ("train", "validate"):
        if split not in grids.splits:
            raise InputError(
                f"The code grids of {grids.vqvae_run} hold no {split} slices. Make an archive that "
                "has some, with other --fractions or more subjects."
            )
    if len(grids.variants) < training.variants:
        raise InputError(
            f"`variants` must be at most {len(grids.variants)}, as many as the code grids of "
            f"{grids.vqvae_run} hold. Received: variants={training.variants}. Encode more."
        )
    run = Run(path)

    def prepare(devices):
        model = build_model(grids, config, training.seed)
        size, variants = training.batch_size, grids.variants[: training.variants]
        batches = CodeBatches(grids.splits["train"], size, training.seed, variants, devices=devices)
        return model, batches, CodeBatches(grids.splits["validate"], size, devices=devices)

    def measure(model, state):
        return _metrics(run, grids, state, training.batch_size)

    asked = run_config("pixelcnn", config, training, **_origin(grids))
    facts = {"archive_hash": grids.archive_hash}
    counts = [len(grids.splits[split].codes) for split in ("train", "validate")]
    return run_training(run, asked, KINDS, GOAL, training, facts, counts, prepare, measure)


def build_model(grids: CodeGrids, config: PixelCNNConfig, seed: int) -> PixelCNN:
    """An untrained model for the code grids of a VQ-VAE.

    Args:
        grids: the code grids.
        config: the model.
        seed: for the dropout.
    """
    model = PixelCNN(
        grids.grid_shape, grids.num_embeddings, seed=seed, **dataclasses.asdict(config)
    )
    model.build()
    return model


def cost(model: PixelCNN, grids: CodeGrids, split: SplitCodes, batch_size: int) -> dict:
    """What the codes of slices cost under a prior.

    Args:
        model: the prior.
        grids: where the slices come from.
        split: their codes.
        batch_size: grids at a time.

    Returns:
        `nats_per_code`, `bits_per_slice`, and `bits_per_pixel_prior` over the source's pixels.
    """
    if not model.compiled:
        model.compile()
    batches = CodeBatches(split, batch_size)
    with bar(count := len(split.codes), "measuring the cost", "slices") as shown:
        step = keras.callbacks.LambdaCallback(
            on_test_batch_end=lambda batch, logs: shown.update(min(batch_size, count - shown.n))
        )
        scores = model.evaluate(batches, verbose=0, callbacks=[step], return_dict=True)
    return _rates(scores["nats_per_code"], grids)


def _rates(nats, grids):
    bits = nats / math.log(2) * math.prod(grids.grid_shape)
    pixels = math.prod(grids.image_shape)
    return {
        "nats_per_code": nats,
        "bits_per_slice": bits,
        "bits_per_pixel_prior": bits / pixels,
    }


def _origin(grids):
    return {
        "archive_hash": grids.archive_hash,
        "vqvae_hash": grids.vqvae_hash,
        "vqvae_run": grids.vqvae_run,
        "positions": np.unique(grids.splits["train"].positions).tolist(),
    }


def _metrics(run, grids, state: TrainingProgress, batch_size) -> dict:
    model = PixelCNN.from_run(run)
    splits = {name: cost(model, grids, split, batch_size) for name, split in grids.splits.items()}
    train_codes = grids.splits["train"].codes
    raw = bits_per_pixel_raw(grids.grid_shape, grids.num_embeddings, grids.image_shape)
    return {
        "split": "validate",
        "epoch": best_epoch(state, *GOAL),
        "epochs": state.epoch,
        **splits["validate"],
        "bits_per_pixel_raw": raw,
        "splits": splits,
        # Counted on train: what a code costs without any other code known.
        "entropy_by_position": entropy_by_position(train_codes, grids.num_embeddings),
        "entropy": entropy(train_codes, grids.num_embeddings),
        "seconds": state.seconds,
    }


def summary(metrics: dict) -> str:
    """What a training reached, as a table of text.

    Args:
        metrics: as `train` returns it.
    """
    lines = [f"{'split':9} {'nats/code':>9} {'bits/code':>9} {'bits/slice':>10} {'bits/pixel':>10}"]
    for name, split in metrics["splits"].items():
        nats = split["nats_per_code"]
        lines.append(
            f"{name:9} {nats:9.4f} {nats / math.log(2):9.4f} {split['bits_per_slice']:10.1f} "
            f"{split['bits_per_pixel_prior']:10.4f}"
        )
    order_0, nats = metrics["entropy_by_position"], metrics["nats_per_code"]
    gain = 1 - nats / order_0
    side = "under" if gain >= 0 else "over"
    lines.append(
        f"best epoch {metrics['epoch']} of {metrics['epochs']}: validation "
        f"{abs(gain):.1%} {side} the codes' entropy by position ({order_0:.4f} nats), "
        f"{metrics['bits_per_pixel_raw']:.4f} bits per pixel raw"
    )
    return "\n".join(lines)
