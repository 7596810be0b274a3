"""One way to train for both stages: schedule, progress, best and last state, exact resume."""

import contextlib
import csv
import dataclasses
import io
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Literal

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from brainslices import progress
from brainslices.batches import Batches
from brainslices.cli import hushed
from brainslices.config import TrainingConfig, from_dict
from brainslices.devices import (
    alone,
    anywhere,
    data_parallel,
    device_count,
    gpus,
    is_first,
    on_first,
    process_share,
    replica_count,
    require_same_everywhere,
    total,
)
from brainslices.errors import InputError
from brainslices.figures import training_figure
from brainslices.precision import resolve_precision
from brainslices.runs import (
    FORMAT_VERSION,
    Run,
    atomic_path,
    environment,
    read_json,
    write_json,
)
from brainslices.state import TrainingState, load_state, save_state

__all__ = [
    "averaged",
    "best_epoch",
    "compile_model",
    "describe",
    "fit",
    "learning_rate",
    "require_same",
    "resumed_precision",
    "train_run",
]

# Within an epoch the state is saved this often: the most that a power cut can cost.
SAVE_INTERVAL_S = 600.0
# Looking at a loss waits for the device: now and then is enough. So is asking other processes.
CHECK_STEPS, ASK_STEPS = 50, 10
# Share of the codebook under which it has collapsed, if it stays so for some epochs.
COLLAPSED_USAGE, COLLAPSED_EPOCHS = 0.1, 3
# What an epoch's line tells, short enough for 100 columns; all else is in the history.
SHOWN = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_ssim": "ssim",
    "val_ssim_foreground": "foreground",
    "nats_per_code": "nats per code",
    "val_nats_per_code": "validation",
}
# What a run was made from: its hash in config.json -> what it is, and the flag that names it.
ORIGINS = {
    "archive_hash": ("another archive (content", "--data"),
    "vqvae_hash": ("codes of another VQ-VAE (model", "--vqvae"),
}


def learning_rate(config: TrainingConfig, steps: int):
    """The learning rate, or its schedule over `steps` steps."""
    if config.schedule == "constant":
        return config.learning_rate
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(1, steps - config.warmup_steps),
    )


def compile_model(model: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> None:
    """Give a built model its Adam optimiser, with all of the optimiser's state made."""
    model.compile(
        optimizer=_Adam(
            learning_rate(config, config.epochs * steps_per_epoch),
            name="adam",
            beta_2=config.beta_2,
            global_clipnorm=config.gradient_clip or None,
            use_ema=config.average > 0,
            ema_momentum=config.average,
        ),
        auto_scale_loss=True,
    )
    model.optimizer.build(model.trainable_variables)


class _Adam(keras.optimizers.Adam):
    """Adam whose average of the weights starts soon, and leaves them alone when a `fit` ends.

    A training is made of several: the rest of an epoch that was cut, and the other epochs.
    """

    def finalize_variable_values(self, var_list):
        pass

    def _clip_gradients(self, grads):
        # The norm is that of the whole batch's gradient; Keras adds the parts up only later.
        parts = replica_count()
        if parts == 1 or not self.global_clipnorm:
            return super()._clip_gradients(grads)
        return [grad / parts for grad in super()._clip_gradients(total(grads))]

    @property
    def ema_momentum(self):
        """Lower at first, so that an average of few steps is not mostly the first weights."""
        steps = ops.cast(self.iterations, "float32")
        return ops.minimum(self._average, (1.0 + steps) / (10.0 + steps))

    @ema_momentum.setter
    def ema_momentum(self, average):
        self._average = average


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Lend the model the average of its weights, where its optimiser keeps one."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    # Copies: under JAX an array that two variables shared would be given away with one of them.
    own = [np.array(variable) for variable in model.trainable_variables]
    averages = optimizer._model_variables_moving_average
    _assign(model.trainable_variables, [np.array(average) for average in averages])
    try:
        yield
    finally:
        _assign(model.trainable_variables, own)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def fit(
    model: keras.Model,
    train: Batches,
    validation: Batches,
    run: Run,
    config: TrainingConfig,
    monitor: str,
    mode: Literal["min", "max"],
) -> TrainingState:
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
    state = load_state(run, model)
    if is_first() and not run.state_path.exists():
        save_state(run, model, state)  # from here on the folder is a run that has begun
    keeper = _Keeper(run, state, config, train, (monitor, mode))
    shown = _Progress(config.epochs, train)
    callbacks = [shown, keeper]
    if is_first():
        callbacks += _tensorboard(run)
    # Keras would shuffle the batches once more, in an order that no state holds.
    options = {"validation_data": validation, "callbacks": callbacks, "shuffle": False}
    options["verbose"] = 0
    with keeper.signals(), contextlib.closing(shown):
        if state.step == train.steps_per_epoch:
            _finish_epoch(model, validation, state, callbacks)
        elif state.step and not keeper.waited_out:
            # The rest of the epoch that was cut: Keras fixes an epoch's length for a whole `fit`.
            train.epoch, train.first_step = state.epoch, state.step
            model.fit(train, initial_epoch=state.epoch, epochs=state.epoch + 1, **options)
        if state.epoch < config.epochs and not keeper.waited_out:
            train.epoch, train.first_step = state.epoch, 0
            model.fit(train, initial_epoch=state.epoch, epochs=config.epochs, **options)
    if is_first():
        _draw_history(run, state)
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


def train_run(
    run: Run,
    asked: dict,
    kinds: Mapping[str, type],
    goal: tuple[str, Literal["min", "max"]],
    training: TrainingConfig,
    facts: dict,
    prepare: Callable[[int], tuple[keras.Model, Batches, Batches]],
    measure: Callable[[keras.Model, TrainingState], dict],
) -> dict:
    """Train in a run folder, or go on there: what both stages do around `fit`.

    On all devices that are there; of several processes only the first writes.

    Args:
        run: the folder, made if missing.
        asked: what its `config.json` holds.
        kinds: as `require_same`.
        goal: `monitor` and `mode` of `fit`.
        training: the training's configuration.
        facts: for `environment.json`, beside precision and seed.
        prepare: makes model, training batches and validation batches, given the number of devices
            that share them; called when policy and seeds are set.
        measure: the run's metrics, from the model and the last state.

    Returns:
        Those metrics.

    Raises:
        InputError: if the folder cannot be used; nothing is changed then. Or as `fit`.
        KeyboardInterrupt: as `fit`.
    """
    require_same_everywhere([asked["model"], asked["training"]], "options")
    on_first(require_same, run, asked, kinds)
    devices = device_count()
    _require_even_shares(training.batch_size, devices)
    with contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(run.lock()))
        on_first(require_same, run, asked, kinds)  # it may have been begun while we looked
        policy, reason = _set_up(run, asked, training)
        with data_parallel():
            model, batches, validation = prepare(devices)
            compile_model(model, training, batches.steps_per_epoch)
            load_state(run, model)  # one that does not fit is found before anything is written
            tqdm.write(f"precision {policy}: {reason}")
            if devices > 1:
                tqdm.write(f"{devices} devices, {training.batch_size // devices} items each a step")
            if is_first():
                write_json(run.config_path, asked)
                facts = {"precision": policy, "precision_reason": reason, **facts}
                write_json(run.environment_path, environment(seed=training.seed, **facts))
            state = fit(model, batches, validation, run, training, *goal)
        return on_first(_sum_up, run, model, state, measure)


def _set_up(run, asked, training):
    """Precision, names and seeds, as a new process has them; the policy and why it is this one."""
    width = int(np.max(asked["model"]["channels"]))
    policy, reason = on_first(resumed_precision, run, training, width)
    # Names count what the process made before, and TensorFlow orders some sums by name.
    keras.utils.clear_session(free_memory=False)
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(training.seed)
    _require_determinism()
    return policy, reason


def _sum_up(run, model, state, measure):
    run.require_model()  # a finished run may have lost it
    metrics = measure(model, state)
    write_json(run.metrics_path, metrics)
    return metrics


def _require_even_shares(batch_size, devices):
    if batch_size % devices:
        raise InputError(
            f"`batch_size` must be a multiple of {devices}, the devices that share each batch. "
            f"Received: batch_size={batch_size}."
        )


def best_epoch(state: TrainingState, monitor: str, mode: Literal["min", "max"]) -> int:
    """The first of the epochs, counted from 1, with the best score."""
    scores = np.asarray(state.history[monitor])
    return int(np.argmax(scores if mode == "max" else -scores)) + 1


def _require_determinism():
    """Sums in the same order each time, which TensorFlow's threads do not keep to by themselves.

    On a CPU that costs nothing to speak of; on a GPU it would, and some operations refuse.
    """
    if keras.backend.backend() != "tensorflow" or gpus():
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def describe(kind: str, config: object, training: TrainingConfig, **origin: object) -> dict:
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


def require_same(run: Run, asked: dict, kinds: Mapping[str, type]) -> None:
    """A run goes on only as what it was begun; more epochs may be asked of it.

    A cosine schedule is then stretched over all of them, and the learning rate rises once more.

    Args:
        run: the folder to train in.
        asked: what its `config.json` would hold; hashes that are not known yet may be missing.
        kinds: the dataclasses of its objects: "model" and "training".

    Raises:
        InputError: if the folder holds another training, or something else.
    """
    if not run.state_path.exists():
        others = sorted(run.strangers())
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
    if config.precision == "auto" and run.state_path.exists() and run.environment_path.exists():
        begun = read_json(run.environment_path)
        if "precision" in begun:
            return begun["precision"], begun["precision_reason"]
    return resolve_precision(config.precision, width)


def _bare(model):
    """A copy without the optimiser: using a model needs neither its state nor its class."""
    bare = type(model).from_config(model.get_config())
    bare.build_from_config(model.get_build_config())
    bare.set_weights(model.get_weights())
    return bare


def _draw_history(run: Run, state: TrainingState) -> None:
    """Draw the curves of the finished epochs, if there are any, to `figures/training.png`."""
    if state.history:
        training_figure(run.figures / "training.png", state.history)


def _tensorboard(run):
    """TensorBoard's callback where it can work: it writes through TensorFlow."""
    if any(find_spec(name) is None for name in ("tensorboard", "tensorflow")):
        return []
    with hushed():
        import tensorflow  # noqa: F401
    return [keras.callbacks.TensorBoard(run.logs, write_graph=False)]


class _Keeper(keras.callbacks.Callback):
    """Keeps the run folder: state, best model, history; stops at a signal with all of it saved."""

    def __init__(self, run, state, config, train, goal):
        super().__init__()
        self.run, self.state, self.train = run, state, train
        self.goal, self.patience = goal, config.patience
        self.lent = contextlib.ExitStack()
        # Keras resets the metrics as an epoch begins; a cut epoch goes on with those it had.
        self.restored = None
        self.saved_at = self.counted_at = time.monotonic()
        share, processes = process_share()
        self.first, self.alone = share == 0, processes == 1
        self.stopped_by = None
        # The metrics of an epoch's training, while its validation goes on.
        self.trained = None

    @contextlib.contextmanager
    def signals(self):
        """Turn the first SIGINT or SIGTERM into a stop after the step; a second acts at once."""
        before = {}

        def stop(number, frame):
            self.stopped_by = signal.Signals(number).name
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # signals belong to the main thread alone
                before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_begin(self, logs=None):
        if self.state.step:
            self.restored = [np.asarray(value) for value in self.model.metrics_variables]

    def on_epoch_begin(self, epoch, logs=None):
        self.train.epoch = epoch
        if self.restored is not None:
            _assign(self.model.metrics_variables, self.restored)
            self.restored = None

    def on_train_batch_end(self, batch, logs=None):
        self.state.step += 1
        if self.state.step % CHECK_STEPS == 0:
            self._require_finite(logs)
        if self.state.step == self.train.steps_per_epoch:
            return  # validation comes next, and looks for a stop as well
        if self._must_stop(self.state.step):
            self._save(logs)
            self._stop()
        elif time.monotonic() - self.saved_at > SAVE_INTERVAL_S:
            self._save(logs)

    def on_test_begin(self, logs=None):
        self.trained = [np.array(value) for value in self.model.metrics_variables]
        self.lent.enter_context(averaged(self.model))

    def on_test_batch_end(self, batch, logs=None):
        if self._must_stop(batch):
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self.lent.close()
            _assign(self.model.metrics_variables, self.trained)
            self._save({})
            self._stop()

    def on_test_end(self, logs=None):
        self.lent.close()

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in logs.items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        self._require_finite(values)
        for key, value in values.items():
            self.state.history.setdefault(key, []).append(value)
        self.state.epoch, self.state.step = epoch + 1, 0
        self._warn_of_collapse()
        if best_epoch(self.state, *self.goal) == self.state.epoch:
            with averaged(self.model), alone():
                self._save_model()
        if self.first:
            _write_history(self.run, self.state.history)
        self._save(values)
        if self._must_stop(0):
            self._stop()
        self.model.stop_training = self.waited_out

    def _save_model(self):
        if self.first:
            with atomic_path(self.run.model_path) as temporary:
                _bare(self.model).save(temporary)

    def _warn_of_collapse(self):
        usage = self.state.history.get("codebook_usage", [])
        last = usage[-COLLAPSED_EPOCHS:]
        if len(last) == COLLAPSED_EPOCHS and max(last) < COLLAPSED_USAGE:
            tqdm.write(
                f"warning: only {usage[-1]:.1%} of the codebook has been used for "
                f"{COLLAPSED_EPOCHS} epochs. Try --codebook ema, --kmeans-init, a "
                "--restart-threshold of 0.5, a lower --learning-rate, or fewer --num-embeddings."
            )

    @property
    def waited_out(self):
        """Whether the score has not improved for as long as the configuration waits."""
        if not self.patience or not self.state.history:
            return False
        return self.state.epoch - best_epoch(self.state, *self.goal) >= self.patience

    def _save(self, logs):
        self._require_finite(logs)
        now = time.monotonic()
        self.state.seconds += now - self.counted_at
        self.counted_at = now
        if self.first:
            save_state(self.run, self.model, self.state)
        self.saved_at = time.monotonic()

    def _must_stop(self, step):
        """Whether a signal has come, to any of the processes: they stop after the same step."""
        if self.alone:
            return self.stopped_by is not None
        return step % ASK_STEPS == 0 and anywhere(self.stopped_by is not None)

    def _stop(self):
        if self.first:
            _draw_history(self.run, self.state)
        raise KeyboardInterrupt(
            f"State saved in {self.run.path} after epoch {self.state.epoch}, step "
            f"{self.state.step} of the next. The same command goes on from there."
        )

    def _require_finite(self, logs):
        bad = [key for key, value in logs.items() if not np.isfinite(float(value))]
        if bad:
            raise InputError(
                f"{', '.join(bad)} is not finite in epoch {self.state.epoch + 1}, step "
                f"{self.state.step}. The last good state is kept in {self.run.path}. Try a lower "
                "--learning-rate, a --gradient-clip of 1, or --precision float32, in a new --run."
            )


class _Progress(keras.callbacks.Callback):
    """A bar for the epoch under way, a line for each finished one."""

    def __init__(self, epochs, train):
        super().__init__()
        self.epochs, self.train = epochs, train
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.slices = time.monotonic(), 0
        self.bar = progress.bar(
            total=self.train.steps_per_epoch * self.train.batch_size,
            description=f"epoch {epoch + 1}/{self.epochs}",
            unit="slices",
            initial=self.train.first_step * self.train.batch_size,
        )

    def on_train_batch_end(self, batch, logs=None):
        self.slices += self.train.batch_size
        self.bar.update(self.train.batch_size)

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        seconds = time.monotonic() - self.started
        whole = self.train.steps_per_epoch * self.train.batch_size / max(self.slices, 1)
        left = seconds * whole * (self.epochs - epoch - 1)
        shown = {key: float(value) for key, value in logs.items()}
        words = [f"epoch {epoch + 1}/{self.epochs}"]
        # A prior's loss is its nats per code.
        names = [key for key in SHOWN if key in shown]
        if "nats_per_code" in names:
            names = [key for key in names if not key.endswith("loss")]
        words += [f"{SHOWN[key]} {shown[key]:.4f}" for key in names]
        words += [f"usage {shown['codebook_usage']:.0%}"] if "codebook_usage" in shown else []
        words.append(f"{self.slices / seconds:.0f} slices/s")
        words.append(f"{tqdm.format_interval(left)} left")
        tqdm.write("  ".join(words))

    def close(self):
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()


def _write_history(run, history):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *history])
    for number, values in enumerate(zip(*history.values(), strict=True), start=1):
        writer.writerow([number, *values])
    with atomic_path(run.history_path) as temporary:
        temporary.write_text(text.getvalue())
