"""TensorBoard logs of a training, which never stop it."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import keras

from brainslices.cli import suppress_backend_logs
from brainslices.runs.run import Run

__all__ = ["TensorBoard", "tensorboard_callbacks"]

logger = logging.getLogger(__name__)


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's callback; where TensorFlow cannot write a log, it warns and writes no more.

    The disk may be full or `logs` no folder. Checkpoints have their own errors.
    """

    is_stopped = False


def _stop_at_error(name: str) -> Callable[..., None]:
    def hook(self: TensorBoard, *args: Any, **kwargs: Any) -> None:
        import tensorflow as tf

        if self.is_stopped:
            return
        try:
            getattr(keras.callbacks.TensorBoard, name)(self, *args, **kwargs)
        except (OSError, tf.errors.OpError) as error:
            self.is_stopped = True
            reason = getattr(error, "message", str(error)).partition("}} ")[2] or str(error)
            logger.warning(
                f"the TensorBoard logs in {self.log_dir} cannot be written "
                f"({reason.splitlines()[0][:300]}). The training continues without them."
            )

    return hook


for _name in vars(keras.callbacks.TensorBoard):
    if _name.startswith("on_") or _name == "set_model":
        setattr(TensorBoard, _name, _stop_at_error(_name))


def tensorboard_callbacks(run: Run) -> list[keras.callbacks.Callback]:
    """Return the callback, or none if TensorBoard or TensorFlow, which it needs, is missing."""
    if any(find_spec(name) is None for name in ("tensorboard", "tensorflow")):
        return []
    try:
        with suppress_backend_logs():
            import tensorflow as tf
        if keras.backend.backend() != "tensorflow":
            tf.config.set_visible_devices([], "GPU")  # it would allocate the GPUs' memory
    except (ImportError, RuntimeError):  # a broken installation, or devices already in use
        return []
    return [TensorBoard(run.logs, write_graph=False)]
