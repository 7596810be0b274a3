"""A stage declares its training once; `run_training` carries it out in a run folder."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from brainslices.config import TrainingConfig, from_dict
from brainslices.data.batches import Batches, largest_even_count
from brainslices.distributed.collectives import (
    check_same_on_all_processes,
    process_index_and_count,
    run_on_primary,
)
from brainslices.distributed.devices import count_devices, data_parallel
from brainslices.errors import CorruptFileError, InputError
from brainslices.progress import print_lines
from brainslices.runs.json_files import write_json
from brainslices.runs.loading import load_model
from brainslices.runs.provenance import environment
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import Objective
from brainslices.training.checkpoint import TrainingProgress, load_checkpoint
from brainslices.training.loop import enable_determinism, fit
from brainslices.training.optimizer import compile_model
from brainslices.training.precision import resolve_precision
from brainslices.types import PathLike

__all__ = ["Objective", "Stage", "check_batch_divides", "check_resumable", "run_training"]

logger = logging.getLogger(__name__)

# Hash in config.json -> what it identifies, and the flag that selects that.
PROVENANCE = {
    "conditions_hash": ("the conditions", "--conditions and table of subjects"),
    "archive_hash": ("the archive with content", "--data"),
    "vqvae_hash": ("the codes of the VQ-VAE with model", "--vqvae"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The training of one model on one data set.

    Args:
        kind: "vqvae" or "pixelcnn".
        model: configuration of the model, a dataclass with `channels`.
        objective: the validation score that selects the best epoch.
        provenance: what the run is made from (hashes, paths), for `config.json`.
        metadata: for `environment.json`, in addition to precision and seed.
        sample_counts: number of training and of validation samples.
        prepare: returns the built model, the training batches and the validation batches. Called
            once precision and seeds are set, with the keyword arguments `devices` and `shard` of
            `Batches`.
        measure: returns the run's metrics from the trained model and the progress.
    """

    kind: str
    model: Any
    objective: Objective
    provenance: Mapping[str, Any]
    metadata: Mapping[str, Any]
    sample_counts: Sequence[int]
    prepare: Callable[..., tuple[keras.Model, Batches, Batches]]
    measure: Callable[[keras.Model, TrainingProgress], dict]

    def run_config(self, training: TrainingConfig) -> dict:
        """Return the contents of a run's `config.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(training),
            **self.provenance,
        }


def run_training(run: PathLike, stage: Stage, training: TrainingConfig) -> dict:
    """Train in a run folder, or resume there, on all devices; only process 0 writes.

    Args:
        run: the run folder; created if missing.
        stage: the training.
        training: its hyperparameters.

    Returns:
        The run's metrics.

    Raises:
        InputError: if the folder cannot be used; nothing is changed then. Or as `fit`.
        KeyboardInterrupt: as `fit`.
    """
    run, config = Run(run), stage.run_config(training)
    resumable = run, stage.kind, stage.model, training, stage.provenance
    check_same_on_all_processes(config, "options, archives or code grids")
    run_on_primary(check_resumable, *resumable)
    devices = _count_devices(stage, training)
    width = int(np.max(stage.model.channels))
    precision, reason = run_on_primary(_resumed_precision, run, training, width)
    with contextlib.ExitStack() as resources:
        run_on_primary(lambda: resources.enter_context(run.lock()))
        run_on_primary(check_resumable, *resumable)  # another process may have started the run
        run_on_primary(_check_trained_model, run, stage.kind)
        resources.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
        _set_up_keras(precision, training.seed)
        with data_parallel():
            model, batches, validation = stage.prepare(
                devices=devices, shard=process_index_and_count()
            )
            compile_model(model, training, batches.steps_per_epoch)
            load_checkpoint(run, model)  # one that does not fit is rejected before any write
            print_lines(f"precision {precision}: {reason}")
            if devices > 1:
                print_lines(f"{devices} devices, {training.batch_size // devices} samples each")
            metadata = {"precision": precision, "precision_reason": reason, **stage.metadata}
            run_on_primary(
                _write_run_metadata, run, config, environment(seed=training.seed, **metadata)
            )
            progress = fit(model, batches, validation, run, training, stage.objective)
        return run_on_primary(_write_metrics, run, stage.measure, model, progress)


def _count_devices(stage, training):
    """Count the devices that share a batch, and check that each gets samples."""
    devices = count_devices()
    check_batch_divides(training.batch_size, devices)
    for count in stage.sample_counts:
        largest_even_count(count, devices)
    return devices


def check_resumable(
    run: PathLike,
    kind: str,
    model: Any,
    training: TrainingConfig,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Check that a run folder is new or holds the same training; only `epochs` may be higher.

    Args:
        run: the run folder.
        kind: as in `Stage`.
        model: as in `Stage`.
        training: the training's configuration.
        provenance: as in `Stage`; entries that are not known yet may be missing.

    Raises:
        InputError: if the folder holds another training or unexpected files.
    """
    run = Run(run)
    if not run.checkpoint_path.exists():
        if unexpected := sorted(run.unexpected_files()):
            raise InputError(
                f"Run folder {run.path} holds files that are not part of a run: "
                f"{', '.join(unexpected[:3])}. Give a new or empty folder as --run."
            )
        return
    saved, provenance = run.open_config(kind), provenance or {}
    for key, (description, flag) in PROVENANCE.items():
        if key in provenance and saved.get(key) != provenance[key]:
            raise InputError(
                f"Run {run.path} was trained on {description} {str(saved.get(key))[:12]}. "
                f"Received: {key}={provenance[key][:12]}. Give the same {flag}, or a new --run."
            )
    changes = [
        change
        for part, config in (("model", model), ("training", training))
        for change in _changes(from_dict(type(config), saved[part], run.config_path), config)
    ]
    if changes:
        raise InputError(
            f"Run {run.path} was started with {'; '.join(changes)}. "
            "Use the same values (only --epochs may be higher), or give a new --run."
        )


def _check_trained_model(run, kind):
    """Load the best epoch's model, so that a corrupt one is refused before epochs are trained."""
    if run.checkpoint_path.exists() and run.history_path.exists():
        load_model(run, kind)


def _changes(saved, config):
    """Describe the fields of a configuration that differ; a higher `epochs` is no difference.

    A cosine schedule is stretched over all epochs then: the learning rate rises again.
    """
    for key, value in dataclasses.asdict(config).items():
        old = getattr(saved, key)
        if value != old and not (key == "epochs" and value > old):
            yield f"{key}={old!r} (received: {value!r})"


def check_batch_divides(batch_size: int, devices: int) -> None:
    """Check that all devices get equally many samples of a batch.

    Raises:
        InputError: if `batch_size` is not a multiple of `devices`.
    """
    if batch_size % devices:
        raise InputError(
            f"`batch_size` must be a multiple of {devices}, the devices that share each batch. "
            f"Received: batch_size={batch_size}."
        )


def _resumed_precision(run, training, width):
    """Dtype policy and reason; with "auto" a run keeps the policy it was started in."""
    if training.precision == "auto" and run.checkpoint_path.exists():
        saved = run.read_environment()
        if "precision" in saved:
            return saved["precision"], saved.get("precision_reason", "as before")
    return resolve_precision(training.precision, width)


def _set_up_keras(policy, seed):
    """Set the dtype policy and all seeds, and make names and sums independent of earlier work."""
    # Keras counts layers in their names, and TensorFlow orders some sums by name.
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    enable_determinism()


def _write_run_metadata(run, config, metadata):
    """Write config.json, and environment.json with the values that were different earlier."""
    write_json(run.config_path, config)
    try:
        before = run.read_environment()
    except CorruptFileError as error:  # no training needs the file
        logger.warning(f"{error} It is overwritten.")
        before = {}
    earlier = before.pop("earlier", [])
    changed = {key: value for key, value in before.items() if value != metadata.get(key)}
    earlier = [*earlier, changed] if changed else earlier
    write_json(run.environment_path, {**metadata, "earlier": earlier})


def _write_metrics(run, measure, model, progress):
    run.trained_model_path()  # fails if a finished run has lost its model
    metrics = measure(model, progress)
    write_json(run.metrics_path, metrics)
    return metrics
