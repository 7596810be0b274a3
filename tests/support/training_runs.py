"""What tests of trainings share: the files of a run, and signals at chosen steps."""

import signal

from brainslices.training.callbacks import CheckpointCallback


def contents(path):
    """Bytes of every file of a run that a refused training must leave alone."""
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file() and item.name not in (".lock", "environment.json")
    }


def interrupts(places):
    """The keeper's callback, with a signal just before the end of some steps."""
    on_step, waiting = CheckpointCallback.on_train_batch_end, list(places)

    def on_train_batch_end(self, batch, logs=None):
        if waiting and (self.state.epoch, self.state.step) == waiting[0]:
            waiting.pop(0)
            signal.raise_signal(signal.SIGINT)
        on_step(self, batch, logs)

    return on_train_batch_end
