"""A data set that repeats one batch, to time training without its input pipeline."""

import keras

__all__ = ["OneBatch"]


class OneBatch(keras.utils.PyDataset):
    """The first of some batches for each step, loaded once: training without an input path.

    Args:
        batches: `Batches`.
    """

    def __init__(self, batches):
        super().__init__()
        self.batch, self.batch_size, self.steps = batches[0], batches.batch_size, len(batches)

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self.batch
