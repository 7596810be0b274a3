import numpy as np
import pytest
from prior_training import TRAINING, train_or_resume

import pixelcnn.training
from brainslices.data.code_grids import SplitCodes
from brainslices.errors import InputError
from brainslices.runs.run import Run
from pixelcnn.training import CodeBatches

pytestmark = pytest.mark.usefixtures("fresh_keras")


def read_batch(batches, index):
    (inputs,) = batches[index]
    return inputs


@pytest.fixture(scope="module")
def numbered_codes():
    """A split of 12 slices and 3 variants; the codes encode slice and variant."""
    rows = np.arange(12, dtype="uint16")[:, None, None] * np.ones((1, 2, 2), "uint16")
    names = np.arange(12).astype(str)
    variants = np.stack([rows + 100 * (number + 1) for number in range(3)])
    return SplitCodes(rows, names, names, np.linspace(0, 1, 12, dtype="float32")), variants


def test_batches_sample_uniformly_from_codes_and_variants(numbered_codes):
    slices, variants = numbered_codes
    counts = np.zeros((4, 12), int)
    for epoch in range(60):
        batches = CodeBatches(slices, 5, seed=1, variants=variants, epoch=epoch)
        assert len(batches) == 2
        for index in range(2):
            inputs = read_batch(batches, index)
            assert inputs["codes"].dtype == np.int32
            assert inputs["codes"].shape == (5, 2, 2)
            variant, row = np.divmod(inputs["codes"][:, 0, 0], 100)
            assert (inputs["codes"] == inputs["codes"][:, :1, :1]).all()
            np.testing.assert_array_equal(inputs["position"], slices.positions[row])
            # By the number of the variant, as `test_augmentation.py` has them.
            flags = [[number % 2 == 1, number >= 2] for number in variant]
            np.testing.assert_array_equal(inputs["augmentation"], np.float32(flags))
            assert len(np.unique(row)) == 5
            np.add.at(counts, (variant, row), 1)
    assert (counts.sum(axis=0) > 35).all()
    np.testing.assert_allclose(counts.sum(axis=1), 150, atol=45)  # four standard deviations


def test_batch_depends_on_seed_epoch_and_step_only(numbered_codes):
    slices, variants = numbered_codes
    whole = CodeBatches(slices, 3, seed=1, variants=variants, epoch=2)
    rest = CodeBatches(slices, 3, seed=1, variants=variants, epoch=2, first_step=2)
    assert (len(whole), len(rest)) == (4, 2)
    for one, other in ((2, 0), (3, 1)):
        for key in ("codes", "position"):
            np.testing.assert_array_equal(read_batch(whole, one)[key], read_batch(rest, other)[key])
    for changes in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        others = CodeBatches(slices, 3, variants=variants, **changes)
        codes = [
            np.concatenate([read_batch(batches, step)["codes"] for step in range(4)])
            for batches in (whole, others)
        ]
        assert (codes[0] != codes[1]).any()


def test_batches_without_a_seed_are_not_shuffled(numbered_codes):
    slices, variants = numbered_codes
    batches = CodeBatches(slices, 5, variants=variants)
    codes = np.concatenate([read_batch(batches, index)["codes"] for index in range(3)])
    np.testing.assert_array_equal(codes, slices.codes)


def test_batches_without_variants_hold_the_original_codes(numbered_codes):
    slices, _ = numbered_codes
    batches = CodeBatches(slices, 12, seed=1)
    assert read_batch(batches, 0)["codes"].max() < 100


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stage_declares_its_batches_and_samples(grids, monkeypatch, count):
    stages = []
    monkeypatch.setattr(
        pixelcnn.training, "run_training", lambda run, stage, training: stages.append(stage)
    )
    train_or_resume(Run("unused"), grids, variants=count)
    (stage,) = stages
    assert tuple(stage.sample_counts) == (40, 16)
    _, batches, validation = stage.prepare(devices=1, shard=(0, 1))
    np.testing.assert_array_equal(batches.variants, grids.variants[:count])
    for actual, name, seed in ((batches, "train", TRAINING.seed), (validation, "validate", None)):
        assert actual.seed == seed
        np.testing.assert_array_equal(actual.split.codes, grids.splits[name].codes)
        np.testing.assert_array_equal(actual.split.positions[:, 0], grids.splits[name].positions)


def test_more_variants_than_the_grids_have_are_rejected(grids):
    with pytest.raises(InputError, match=r"`variants` must be at most 2.*variants=3"):
        train_or_resume(Run("unused"), grids, variants=3)
