"""One way to train for both stages: schedule, progress, best and last state, exact resume."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

import keras
import numpy as np
from tqdm import tqdm

from brainslices.cli import suppress_backend_logs
from brainslices.config import TrainingConfig, from_dict
from brainslices.data.batches import Batches, largest_even_count
from brainslices.distributed.collectives import (
    check_same_on_all_processes,
    is_primary,
    run_on_primary,
)
from brainslices.distributed.devices import data_parallel, device_count, gpus
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.provenance import environment
from brainslices.runs.run import FORMAT_VERSION, Run
from brainslices.training.callbacks import CheckpointCallback, Progress, draw_history
from brainslices.training.checkpoint import TrainingProgress, load_checkpoint, save_checkpoint
from brainslices.training.optimizer import compile_model
from brainslices.training.precision import resolve_precision

__all__ = [
    "run_config",
    "fit",
    "enable_determinism",
    "check_batch_divides",
    "check_resumable",
    "resumed_precision",
    "run_training",
]

# What a run was made from: its hash in config.json -> what it is, and the flag that names it.
ORIGINS = {
    "archive_hash": ("another archive (content", "--data"),
    "vqvae_hash": ("codes of another VQ-VAE (model", "--vqvae"),
}


def fit(
    model: keras.Model,
    train: Batches,
    validation: Batches,
    run: Run,
    config: TrainingConfig,
    monitor: str,
    mode: Literal["min", "max"],
) -> TrainingProgress:
    """Train a compiled model, going on from the run's state where there is one.

    Writes `state.npz`, `model.keras` (the epoch with the best `monitor`), `history.csv`, the
    curves and the TensorBoard logs. What is scored and saved is the weights' average, where one is
    kept. On Ctrl-C or SIGTERM the state is saved after the step under
    way.

    Args:
        model: built and compiled; its state is replaced by the run's.
        train: training batches.
        validation: validation batches.
        run: a run whose lock is held.
        config: the training's configuration.
        monitor: name of the validation score, such as "val_ssim_foreground".
        mode: whether it is the better the higher ("max") or the lower ("min").

    Returns:
        The state after the last epoch: `config.epochs`, or earlier by `config.patience`.

    Raises:
        KeyboardInterrupt: stopped by a signal, the state saved.
        InputError: the loss is no longer finite, or the saved state does not fit.
    """
    state = load_checkpoint(run, model)
    if is_primary() and not run.checkpoint_path.exists():
        save_checkpoint(run, model, state)  # from here on the folder is a run that has begun
    keeper = CheckpointCallback(run, state, config, train, (monitor, mode))
    shown = Progress(config.epochs, train, silent=not is_primary())
    callbacks = [shown, keeper]
    if is_primary():
        callbacks += _tensorboard(run)
    # Keras would shuffle the batches once more, in an order that no state holds.
    options = {"validation_data": validation, "callbacks": callbacks, "shuffle": False}
    options["verbose"] = 0
    with keeper.signals(), contextlib.closing(shown):
        if state.step == train.steps_per_epoch:
            _finish_epoch(model, validation, state, callbacks)
        elif state.step and not keeper.patience_exhausted:
            # The rest of the epoch that was cut: Keras fixes an epoch's length for a whole `fit`.
            train.epoch, train.first_step = state.epoch, state.step
            model.fit(train, initial_epoch=state.epoch, epochs=state.epoch + 1, **options)
        if state.epoch < config.epochs and not keeper.patience_exhausted:
            train.epoch, train.first_step = state.epoch, 0
            model.fit(train, initial_epoch=state.epoch, epochs=config.epochs, **options)
    if is_primary():
        draw_history(run, state)
    return state


def _finish_epoch(model, validation, state, callbacks):
    """An epoch that was cut in its validation: Keras has no `fit` without a step."""
    callbacks = keras.callbacks.CallbackList(callbacks, model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(state.epoch)
    logs = dict(model.get_metrics_result())
    scores = model.evaluate(validation, verbose=0, callbacks=callbacks, return_dict=True)
    callbacks.on_epoch_end(state.epoch, logs | {f"val_{key}": scores[key] for key in scores})
    callbacks.on_train_end()


def run_training(
    run: Run,
    asked: dict,
    kinds: Mapping[str, type],
    goal: tuple[str, Literal["min", "max"]],
    training: TrainingConfig,
    facts: dict,
    counts: Sequence[int],
    prepare: Callable[[int], tuple[keras.Model, Batches, Batches]],
    measure: Callable[[keras.Model, TrainingProgress], dict],
) -> dict:
    """Train in a run folder, or go on there: what both stages do around `fit`.

    On all devices that are there; of several processes only the first writes.

    Args:
        run: the folder, made if missing.
        asked: what its `config.json` holds.
        kinds: as `check_resumable`.
        goal: `monitor` and `mode` of `fit`.
        training: the training's configuration.
        facts: for `environment.json`, beside precision and seed.
        counts: of the items to train and to validate on.
        prepare: makes model, training batches and validation batches, given the number of devices
            that share them; called when policy and seeds are set.
        measure: the run's metrics, from the model and the last state.

    Returns:
        Those metrics.

    Raises:
        InputError: if the folder cannot be used; nothing is changed then. Or as `fit`.
        KeyboardInterrupt: as `fit`.
    """
    check_same_on_all_processes(asked, "options, archives or code grids")
    run_on_primary(check_resumable, run, asked, kinds)
    devices = device_count()
    check_batch_divides(training.batch_size, devices)
    for count in counts:
        largest_even_count(count, devices)
    width = int(np.max(asked["model"]["channels"]))
    policy, reason = run_on_primary(resumed_precision, run, training, width)
    with contextlib.ExitStack() as held:
        run_on_primary(lambda: held.enter_context(run.lock()))
        run_on_primary(check_resumable, run, asked, kinds)  # it may have been begun while we looked
        held.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
        _set_up(policy, training.seed)
        with data_parallel():
            model, batches, validation = prepare(devices)
            compile_model(model, training, batches.steps_per_epoch)
            load_checkpoint(run, model)  # one that does not fit is found before anything is written
            tqdm.write(f"precision {policy}: {reason}")
            if devices > 1:
                tqdm.write(f"{devices} devices, {training.batch_size // devices} items each a step")
            facts = {"precision": policy, "precision_reason": reason, **facts}
            run_on_primary(
                _write_run_metadata, run, asked, environment(seed=training.seed, **facts)
            )
            state = fit(model, batches, validation, run, training, *goal)
        return run_on_primary(_write_metrics, run, model, state, measure)


def _write_run_metadata(run, asked, now):
    """What was asked for, and what the run's figures depend on.

    What was otherwise when it began, or later, is kept.
    """
    write_json(run.config_path, asked)
    try:
        before = read_json(run.environment_path) if run.environment_path.exists() else {}
    except InputError as damage:  # no training needs it
        tqdm.write(f"warning: {damage} It is written anew.")
        before = {}
    earlier = before.pop("earlier", [])
    changed = {key: value for key, value in before.items() if value != now.get(key)}
    write_json(
        run.environment_path, {**now, "earlier": [*earlier, changed] if changed else earlier}
    )


def _set_up(policy, seed):
    """Precision, names and seeds, as a new process has them."""
    # Names count what the process made before, and TensorFlow orders some sums by name.
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    enable_determinism()


def _write_metrics(run, model, state, measure):
    run.trained_model_path()  # a finished run may have lost it
    metrics = measure(model, state)
    write_json(run.metrics_path, metrics)
    return metrics


def check_batch_divides(batch_size: int, devices: int) -> None:
    """Check that each device gets as many items of a batch.

    Raises:
        InputError: if the batch cannot be shared so.
    """
    if batch_size % devices:
        raise InputError(
            f"`batch_size` must be a multiple of {devices}, the devices that share each batch. "
            f"Received: batch_size={batch_size}."
        )


def enable_determinism() -> None:
    """Sums in the same order each time, which TensorFlow's threads do not keep to by themselves.

    On a CPU that costs nothing to speak of; on a GPU it would, and some operations refuse.
    """
    if keras.backend.backend() != "tensorflow" or gpus():
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def run_config(kind: str, config: object, training: TrainingConfig, **origin: object) -> dict:
    """What a run's `config.json` holds.

    Args:
        kind: "vqvae" or "pixelcnn".
        config: the model's dataclass.
        training: the training's.
        **origin: what it was made from: hashes, paths.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "model": dataclasses.asdict(config),
        "training": dataclasses.asdict(training),
        **origin,
    }


def check_resumable(run: Run, asked: dict, kinds: Mapping[str, type]) -> None:
    """A run goes on only as what it was begun; more epochs may be asked of it.

    A cosine schedule is then stretched over all of them, and the learning rate rises once more.

    Args:
        run: the folder to train in.
        asked: what its `config.json` would hold; hashes that are not known yet may be missing.
        kinds: the dataclasses of its objects: "model" and "training".

    Raises:
        InputError: if the folder holds another training, or something else.
    """
    if not run.checkpoint_path.exists():
        others = sorted(run.unexpected_files())
        if others:
            raise InputError(
                f"Run folder {run.path} holds other things ({', '.join(others[:3])}) and "
                "no training to go on with. Give a new or empty folder as --run."
            )
        return
    begun = run.open_config(asked["kind"])
    for key, (what, flag) in ORIGINS.items():
        if key in asked and begun.get(key) != asked[key]:
            raise InputError(
                f"Run {run.path} was trained on {what} {str(begun.get(key))[:12]}, "
                f"this one has {asked[key][:12]}). Give that {flag}, or a new --run."
            )
    changed = []
    for part, kind in kinds.items():
        before = dataclasses.asdict(from_dict(kind, begun[part], run.config_path))
        changed += [
            f"{key}={before[key]!r} (asked: {value!r})"
            for key, value in asked[part].items()
            if value != before[key] and not (key == "epochs" and value > before[key])
        ]
    if changed:
        raise InputError(
            f"Run {run.path} was begun with {'; '.join(changed)}. "
            "Ask for the same (or for more epochs), or give a new --run."
        )


def resumed_precision(run: Run, config: TrainingConfig, width: int) -> tuple[str, str]:
    """Policy and reason; a run goes on in the policy it was begun in, whatever a probe says.

    Args:
        run: the folder to train in.
        config: the training's configuration.
        width: channels of the model's widest layers, for the probe.
    """
    if (
        config.precision == "auto"
        and run.checkpoint_path.exists()
        and run.environment_path.exists()
    ):
        begun = read_json(run.environment_path)
        if "precision" in begun:
            return begun["precision"], begun["precision_reason"]
    return resolve_precision(config.precision, width)


def _tensorboard(run):
    """TensorBoard's callback where it can work: it writes through TensorFlow."""
    if any(find_spec(name) is None for name in ("tensorboard", "tensorflow")):
        return []
    try:
        with suppress_backend_logs():
            import tensorflow as tf
        if keras.backend.backend() != "tensorflow":
            tf.config.set_visible_devices([], "GPU")  # it would take their memory from the backend
    except (ImportError, RuntimeError):  # it is broken, or holds its devices already
        return []
    return [keras.callbacks.TensorBoard(run.logs, write_graph=False)]
