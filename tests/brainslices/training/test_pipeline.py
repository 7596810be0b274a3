import keras
import numpy as np
import pytest
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from training_runs import NumberedArchive, fit_tiny

from brainslices.data.batches import SliceBatches
from brainslices.data.code_grids import SplitCodes
from brainslices.runs.run import Run
from brainslices.training.pipeline import input_pipeline
from pixelcnn.training import CodeBatches

pytestmark = pytest.mark.usefixtures("fresh_keras")

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the other backends read a PyDataset"
)


def batches(**options):
    return SliceBatches(NumberedArchive(), np.arange(22), 4, mirror=True, **options)


@on_tensorflow
@pytest.mark.parametrize("seed", [0, None])
def test_pipeline_keeps_the_order_of_the_batches(seed):
    source = batches(seed=seed, first_step=1)
    pipeline = input_pipeline(source)
    assert len(pipeline) == len(source)
    for source.epoch in (0, 1):
        images = [np.asarray(image) for (image,) in pipeline]
        assert len(images) == len(source)
        for step, image in enumerate(images):
            np.testing.assert_array_equal(image, source[step][0])


@on_tensorflow
def test_pipeline_keeps_names_shapes_and_dtypes():
    names, rows = np.arange(9).astype(str), np.arange(9, dtype="uint16")
    split = SplitCodes(rows[:, None, None] * np.ones((1, 2, 3), "uint16"), names, names, rows / 9)
    source = CodeBatches(split, 4, seed=1)
    for (inputs,), (expected,) in zip(input_pipeline(source), source, strict=True):
        assert list(inputs) == list(expected)
        for name, array in expected.items():
            assert inputs[name].dtype == array.dtype
            np.testing.assert_array_equal(inputs[name], array)
    ((spec,),) = (input_pipeline(source).element_spec,)
    assert spec["codes"].shape == (None, 2, 3)


@on_tensorflow
def test_pipeline_has_no_generator(monkeypatch):
    """TensorFlow's generators lower the trim threshold of the allocator for the whole process."""
    import tensorflow as tf

    def fail(*arguments, **options):
        raise AssertionError("a generator")

    monkeypatch.setattr(tf.data.Dataset, "from_generator", fail)
    assert len(list(input_pipeline(batches(seed=0)))) == 5


@on_tensorflow
def test_autotuning_is_off_and_still_on_in_keras():
    """The pipeline is no longer needed if Keras turns autotuning off for every PyDataset."""
    assert input_pipeline(batches()).options().autotune.enabled is False
    assert PyDatasetAdapter(batches()).get_tf_dataset().options().autotune.enabled is not False


@pytest.mark.slow
@on_tensorflow
def test_training_and_validation_read_the_pipeline(tmp_path, monkeypatch):
    def fail(self):
        raise AssertionError("a dataset with autotuning")

    monkeypatch.setattr(PyDatasetAdapter, "get_tf_dataset", fail)
    _, progress = fit_tiny(Run(tmp_path / "run"), epochs=1)
    assert progress.epoch == 1
