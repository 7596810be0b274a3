"""The input pipeline of `fit` and `evaluate`."""

from typing import Any

import keras

from brainslices.data.batches import Batches

__all__ = ["input_pipeline"]

# Batches loaded ahead of the step that uses them.
PREFETCHED = 2


def input_pipeline(batches: Batches) -> Any:
    """Return batches in the form in which `fit` and `evaluate` read them without pauses.

    On the TensorFlow backend, Keras wraps a `PyDataset` into a `tf.data.Dataset` with autotuning.
    When the iterator of an epoch is deleted, its destructor waits for the autotuning thread, which
    sleeps for up to a minute between its runs. This function builds the same dataset, in the same
    order, without autotuning.

    Args:
        batches: the batches of one epoch; read again at each iteration, with their `epoch` at that
            time.

    Returns:
        A `tf.data.Dataset` on the TensorFlow backend, `batches` itself on the others.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batches[0]
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: (batches[step] for step in range(len(batches))), output_signature=signature
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return dataset.prefetch(PREFETCHED).with_options(options)
