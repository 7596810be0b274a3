"""The input pipeline of `fit` and `evaluate`."""

from typing import Any

import keras

from brainslices.data.batches import Batches

__all__ = ["input_pipeline"]

# Batches loaded ahead of the step that uses them.
PREFETCHED = 2


def input_pipeline(batches: Batches) -> Any:
    """Return batches in the form in which `fit` and `evaluate` read them at full speed.

    On the TensorFlow backend, Keras wraps a `PyDataset` into `tf.data.Dataset.from_generator` with
    autotuning. Both cost time:

    - When the iterator of an epoch is deleted, its destructor waits for the autotuning thread,
      which sleeps for up to a minute between its runs.
    - In TensorFlow 2.21, the first generator of a process lowers the trim threshold of glibc's
      allocator to 128 kB (`mallopt`). Memory that a step frees then goes back to the system and is
      mapped again, page by page, in the next one.

    This function builds a dataset of the same batches in the same order without either.

    Args:
        batches: the batches of one epoch; read again at each iteration, with their `epoch` at that
            time.

    Returns:
        A `tf.data.Dataset` on the TensorFlow backend, `batches` itself on the others.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    first = batches[0]
    flat = keras.tree.flatten(first)

    def load_arrays(step):
        return keras.tree.flatten(batches[int(step)])

    def load(step):
        tensors = tf.numpy_function(load_arrays, [step], [array.dtype for array in flat])
        for tensor, array in zip(tensors, flat, strict=True):
            tensor.set_shape((None, *array.shape[1:]))
        return keras.tree.pack_sequence_as(first, tensors)

    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.range(len(batches)).map(load).prefetch(PREFETCHED).with_options(options)
