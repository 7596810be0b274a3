import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, tiny_prior_config

import tuning.trial
from brainslices.data.code_grids import entropy
from brainslices.errors import InputError
from pixelcnn.config import PRESETS
from tuning.config import FINAL_SEED, SearchConfig
from tuning.trial import PRIOR_SHARE, describe_search, run_trial
from vqvae.config import PRESETS as PRESETS_VQVAE

SPACE = str(ROOT / "tests" / "support" / "tiny_space.py")


@pytest.fixture
def describe(phantom_archive, monkeypatch):
    monkeypatch.setattr(tuning.trial, "PRIOR", tiny_prior_config())

    def describe(*fix, devices=None):
        config = SearchConfig(space=SPACE, precision="float32", fix=fix)
        return describe_search(phantom_archive.path, config, devices)

    return describe


def test_missing_archive_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent"):
        describe_search(tmp_path / "absent", SearchConfig())


def test_description_identifies_a_search(describe, phantom_archive):
    free, fixed = describe(), describe("num_embeddings=8", "learning_rate=0.001")
    assert free["space"] != fixed["space"]
    assert (free["fix"], free["precision"]) == ([], "float32")
    assert fixed["fix"] == ["learning_rate=0.001", "num_embeddings=8"]
    assert free["archive_hash"] == phantom_archive.content_hash
    # Neither spelling nor order of the fixed values matters.
    assert fixed == describe("learning_rate=1e-3", "num_embeddings=8.0")


def test_an_archive_that_begins_with_a_black_slice_is_searched(phantom_archive, tmp_path):
    path = Path(shutil.copytree(phantom_archive.path, tmp_path / "black_first"))
    images = phantom_archive.images.copy()
    images[phantom_archive.indices("train")[0]] = 0
    np.save(path / "slices.npy", images)
    config = SearchConfig(space=SPACE, precision="float32")
    assert describe_search(path, config, 1)["defaults"]


def test_batches_that_the_devices_do_not_divide_are_refused(describe, monkeypatch):
    monkeypatch.setattr(tuning.trial, "count_devices", lambda: 3)
    with pytest.raises(InputError, match="multiple of 3"):
        describe()
    describe(devices=1)  # one of several workers has one device


def test_warm_up_takes_at_most_a_tenth_of_a_trial(monkeypatch, phantom_archive, tmp_path):
    received = []

    def train(data, run, model, training):
        received.append((training.epochs, training.warmup_steps))
        raise InterruptedError

    monkeypatch.setattr(tuning.trial.vqvae.training, "train", train)
    full = PRESETS_VQVAE["default"].training
    steps = len(phantom_archive.indices("train")) // full.batch_size
    for epochs, values in ((50, {}), (50, {"tuner/epochs": 2}), (100 * full.warmup_steps, {})):
        config = SearchConfig(space="codebook", epochs=epochs)
        with pytest.raises(InterruptedError):
            run_trial(phantom_archive.path, tmp_path, config, values)
    assert 0 < 5 * steps < full.warmup_steps
    # A longer trial of hyperband continues one of a single epoch, and has its warm-up.
    assert received == [
        (50, 5 * steps),
        (2, steps // 10),
        (100 * full.warmup_steps, full.warmup_steps),
    ]


def test_final_training_has_its_own_length_and_seed(monkeypatch, phantom_archive, tmp_path):
    received = []

    def train(data, run, model, training):
        received.append((run.parent.name, training.epochs, training.seed))
        raise InterruptedError

    monkeypatch.setattr(tuning.trial.vqvae.training, "train", train)
    config = SearchConfig(space=SPACE, seed=5, final_epochs=7)
    for number in (0, 1):
        with pytest.raises(InterruptedError):
            run_trial(phantom_archive.path, tmp_path, config, {FINAL_SEED: number})
    assert received == [("final-0", 7, 5), ("final-1", 7, 6)]


def test_rate_of_a_trial_without_prior_is_estimated_from_the_entropy(
    monkeypatch, phantom_archive, tmp_path
):
    codes = np.random.default_rng(0).integers(0, 9, (7, 4, 5))
    grids = SimpleNamespace(
        splits={"train": SimpleNamespace(codes=codes)},
        num_embeddings=16,
        grid_shape=(4, 5),
        image_shape=(64, 60),
    )
    scores = dict.fromkeys(("ssim", "perplexity", "epochs", "seconds"), 1.0)
    scores |= {"ssim_foreground": 0.75, "bits_per_pixel_raw": 0.5, "train_codebook_usage": 1.0}
    monkeypatch.setattr(tuning.trial.vqvae.training, "train", lambda *_: scores)
    monkeypatch.setattr(tuning.trial, "load_or_encode", lambda *_: grids)
    config = SearchConfig(space=SPACE, rate_weight=3.0)
    metrics = run_trial(phantom_archive.path, tmp_path, config, {})
    order_0 = entropy(codes, 16) / math.log(2) * 20 / (64 * 60)
    assert metrics["bits_per_pixel_order_0"] == pytest.approx(order_0)
    assert metrics["bits_per_pixel_estimated"] == pytest.approx(PRIOR_SHARE * order_0)
    expected = 0.25 + 3 * PRIOR_SHARE * order_0
    assert metrics["val_rate_distortion"] == pytest.approx(expected)
    assert not {"bits_per_pixel_prior", "nats_per_code"} & set(metrics)


def test_only_a_final_training_has_the_augmented_copies_of_a_full_one(
    monkeypatch, phantom_archive, tmp_path
):
    received = []

    def encode(run, data, variants):
        received.append(variants)
        raise InterruptedError

    monkeypatch.setattr(tuning.trial.vqvae.training, "train", lambda *_: {})
    monkeypatch.setattr(tuning.trial, "load_or_encode", encode)
    for values in ({}, {FINAL_SEED: 0}):
        with pytest.raises(InterruptedError):
            run_trial(phantom_archive.path, tmp_path, SearchConfig(space=SPACE), values)
    assert received == [0, PRESETS["default"].training.variants]
    without_prior = SearchConfig(space=SPACE, objective="val_ssim_foreground")
    with pytest.raises(InterruptedError):
        run_trial(phantom_archive.path, tmp_path, without_prior, {FINAL_SEED: 0})
    assert received[-1] == 0
