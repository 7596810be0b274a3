"""Slopes of picture statistics on a condition, in samples and in subjects."""

import numpy as np
import pytest

from brainslices.data.archive import SliceArchive, SliceRecord
from brainslices.data.archive_writer import write_archive
from brainslices.data.subject_table import save_subjects
from brainslices.errors import InputError
from brainslices.evaluation.bootstrap import bootstrap_interval
from brainslices.evaluation.condition_slopes import (
    _slope,
    condition_slopes,
    known_values,
    slice_statistics,
)

POSITIONS = np.linspace(0, 1, 5)
SIDE = 40


def head(dark_share, rng):
    """A disc with a dark centre of a share of its area."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = (x**2 + y**2) / 0.7
    image = np.where(radius < 1, np.where(radius < dark_share, 0.1, 0.8), 0.0)
    return (image + (image > 0) * rng.normal(0, 0.01, image.shape)).clip(0, 1)


@pytest.fixture
def archive(tmp_path):
    """Twelve subjects of 40 to 84 years, whose dark share grows by 0.005 a year."""
    ages, rng = np.arange(40, 88, 4), np.random.default_rng(0)

    def slices():
        for age in ages:
            of_subject = rng.normal(0, 0.03)
            for number, position in enumerate(POSITIONS):
                name = f"s{age}"
                record = SliceRecord(f"{name}_{number}", name, "train", float(position), "made")
                image = head(0.1 + 0.005 * (age - 40) + of_subject, rng)
                yield record, np.rint(image * 255).astype(np.uint8)

    folder = write_archive(tmp_path / "archive", slices(), intensity_rule="made").path
    table = {f"s{age}": {"age": str(age), "sex": "F", "few": ""} for age in ages}
    save_subjects(folder / "subjects.csv", table)
    return SliceArchive.open(folder)


def test_statistics_of_a_head_with_a_dark_centre():
    rng = np.random.default_rng(0)
    images = np.stack([head(0.2, rng), np.zeros((SIDE, SIDE))])
    statistics = slice_statistics(images)
    assert statistics["dark_share"][0] == pytest.approx(0.2, abs=0.02)
    # The grid of pixel centres ends at the edges, so that the disc is a little smaller.
    assert statistics["foreground_area"][0] == pytest.approx(0.7 * np.pi / 4, abs=0.05)
    assert statistics["intensity_0.5"][0] == pytest.approx(0.8, abs=0.02)
    assert all(np.isnan(values[1]) for values in statistics.values())


@pytest.mark.parametrize(("effect", "is_within"), [(0.005, True), (0.001, False)])
def test_slope_of_samples_stands_beside_that_of_subjects(archive, effect, is_within):
    rng, ages = np.random.default_rng(1), (45, 60, 75)
    images = np.stack([head(0.15 + effect * (age - 45), rng) for age in ages for _ in POSITIONS])
    slopes = condition_slopes(images, POSITIONS, ages, archive, "age")["dark_share"]
    assert slopes["slope_real"] == pytest.approx(0.005, rel=0.35)
    assert slopes["slope_real_low"] < slopes["slope_real"] < slopes["slope_real_high"]
    assert slopes["slope"] == pytest.approx(effect, rel=0.25)
    assert (slopes["slope_real_low"] < slopes["slope"] < slopes["slope_real_high"]) == is_within


@pytest.mark.parametrize("name", ["sex", "few", "weight"])
def test_conditions_without_numbers_are_refused(archive, name):
    with pytest.raises(InputError, match=f"`condition` {name} must be a number"):
        known_values(archive, name)


def test_resamples_of_a_single_subject_have_no_slope():
    """Of three subjects, one resample in nine is one subject three times."""
    rng = np.random.default_rng(0)
    ages = np.array([40.0, 60.0, 80.0])
    observations = ages, 0.01 * ages + rng.normal(0, 0.01, 3)
    slope, low, high = bootstrap_interval(_slope, observations, 0)
    assert low < slope < high
    assert np.isnan(_slope(np.full(3, 40.0), observations[1]))


def test_samples_without_a_head_have_no_slope(archive):
    images = np.zeros((2 * len(POSITIONS), SIDE, SIDE))
    slopes = condition_slopes(images, POSITIONS, (45, 60), archive, "age")["dark_share"]
    assert np.isnan(slopes["slope"])
    assert np.isfinite(slopes["slope_real"])
