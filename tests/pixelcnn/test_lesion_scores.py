"""Detection of lesions by maps that are known to find all of them, or nothing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brainslices.data.archive import SliceRecord
from brainslices.data.phantom import phantom_slices
from brainslices.data.slices import Slices
from brainslices.errors import InputError
from brainslices.evaluation import lesions
from pixelcnn import lesion_scores
from pixelcnn.lesion_scores import MEASURES, measure_lesions, summary

KINDS = (lesions.Lesion("bright", 12, 0.3), lesions.Lesion("missing", 12))


def make_slices(images):
    records = [
        SliceRecord(f"slice_{k}", f"case_{k % 3}", "test", 0.5, "phantom")
        for k in range(len(images))
    ]
    return Slices(Path("phantoms"), records, lambda row: images[row], "test", None)


class PerfectScorer:
    """The surprise is the difference to the slice without lesion, which the position tells."""

    batch_size = 4
    decoder = SimpleNamespace(decode_codes=lambda codes: np.full((*codes.shape, 1), 0.5))

    def __init__(self, images):
        self.images = images / np.float32(255)

    def __call__(self, images, positions, subjects, silent):
        surprise = np.abs(images - self.images[positions.astype(int)])
        return SimpleNamespace(codes=np.zeros(images.shape, int), surprise=surprise)

    @property
    def prediction(self):
        return SimpleNamespace(maps=lambda images, *_: np.ones_like(images))

    def maps(self, surprise):
        return surprise

    def restoration_maps(self, images, positions, scored, count, seed):
        yield from np.zeros_like(images)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(lesion_scores, "LESIONS", KINDS)
    images = phantom_slices(0, np.linspace(0.4, 0.6, 6), (96, 96))
    images = np.concatenate([images, np.zeros_like(images[:1])])
    positions = np.arange(len(images), dtype="float32")
    return measure_lesions(PerfectScorer(images), make_slices(images), positions, restorations=1)


def test_a_perfect_map_finds_all_and_an_empty_one_nothing(measured):
    assert len(measured) == len(KINDS) * 5
    for row in measured:
        assert row["slices"] == 6  # the black slice has no head
        if row["map"] == "surprise":
            assert row["auroc"] == row["auroc_low"] == 1
            assert row["average_precision"] > 0.9
            assert row["dice"] > 0.8
        if row["map"] in ("restoration", "prediction"):
            assert row["auroc"] == 0.5
            assert row["average_precision"] == pytest.approx(row["average_precision_chance"])
        for measure in MEASURES:
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]


def test_the_summary_has_a_line_for_each_kind_and_measure(measured):
    text = summary(measured)
    assert text.count("bright 12 px, contrast 0.3") == text.count("missing 12 px") == 2
    assert text.count("reconstruction error") == text.count("restoration") == 2


def test_slices_without_room_are_an_error():
    images = np.zeros((2, 64, 64), "uint8")
    images[:, 30:33, 30:33] = 99
    with pytest.raises(InputError, match="room for a lesion"):
        measure_lesions(PerfectScorer(images), make_slices(images), np.arange(2.0))


def test_black_slices_are_an_error():
    images = np.zeros((2, 64, 64), "uint8")
    with pytest.raises(InputError, match="room for a lesion"):
        measure_lesions(PerfectScorer(images), make_slices(images), np.arange(2.0))


def test_slices_of_a_large_split_are_thinned_with_their_positions(monkeypatch):
    monkeypatch.setattr(lesion_scores, "LESIONS", KINDS[:1])
    monkeypatch.setattr(lesion_scores, "MAX_SLICES", 3)
    images = phantom_slices(0, np.linspace(0.4, 0.6, 7), (96, 96))
    positions = np.arange(7, dtype="float32")
    rows = measure_lesions(PerfectScorer(images), make_slices(images), positions)
    assert {row["slices"] for row in rows} == {3}
    assert next(row for row in rows if row["map"] == "surprise")["auroc"] == 1
