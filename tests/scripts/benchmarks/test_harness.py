import math

import numpy as np
import pytest
from benchmarks.harness import (
    PROCESS_STATUS,
    Row,
    Setting,
    format_rows,
    idle_memory,
    interleaved_medians,
    measure_all,
    measure_memory,
)

from brainslices.errors import InputError
from tuning.workers import call


def test_ratio_is_above_one_if_the_value_is_better():
    assert Row("a", "slices/s", 30.0, baseline=10.0).ratio == 3
    assert Row("a", "s", 10.0, baseline=30.0).ratio == 3
    assert Row("a", "GB", 4.0, baseline=1.0).ratio == 0.25
    assert Row("a", "s", 10.0).ratio is None


def test_thresholds_apply_to_value_or_ratio():
    assert Row("a", "s", 1.0, at_most=1.0).is_met is True
    assert Row("a", "s", 1.1, at_most=1.0).is_met is False
    assert Row("a", "slices/s", 3.0, baseline=2.0, at_least=1.5).is_met is True
    assert Row("a", "slices/s", 2.9, baseline=2.0, at_least=1.5).is_met is False
    assert Row("a", "s", 1.0).is_met is None


def test_table_has_a_missed_threshold():
    lines = format_rows([Row("fast", "s", 0.5, at_most=1.0), Row("slow", "s", 2.0, at_most=1.0)])
    _, fast, slow = lines.splitlines()
    assert fast.split() == ["fast", "0.5", "s", "<=", "1", "s", "met"]
    assert slow.split() == ["slow", "2", "s", "<=", "1", "s", "MISSED"]


def test_table_names_the_baseline_below_its_row():
    row = Row("train", "slices/s", 30.0, 20.0, "plain `fit`", note="in float32")
    _, values, remark = format_rows([row]).splitlines()
    assert values.split() == ["train", "30", "20", "slices/s", "1.5x"]
    assert remark.strip() == "baseline: plain `fit`; in float32"


def test_candidates_take_turns_and_medians_are_returned():
    calls, values = [], iter([1.0, 10.0, 5.0, 30.0, 2.0, 20.0])

    def measure(name):
        calls.append(name)
        return next(values)

    candidates = {"a": lambda: measure("a"), "b": lambda: (measure("b"), 0.0)}
    assert interleaved_medians(candidates, rounds=3) == {"a": 2.0, "b": (20.0, 0.0)}
    assert calls == ["a", "b"] * 3


def test_unknown_measurement_is_refused_before_any_is_run(tmp_path):
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path)
    with pytest.raises(InputError, match="`only`.*'sed'"):
        list(measure_all({"seed": lambda _: pytest.fail("was run")}, setting, ["seed", "sed"]))


def test_rows_that_cannot_be_measured_are_left_out(tmp_path):
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path)
    rows = [Row("time", "s", 1.0), Row("memory", "GB", math.nan)]
    assert list(measure_all({"both": lambda setting: rows}, setting)) == rows[:1]


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="memory is measured on Linux only")
def test_peak_memory_includes_what_was_freed():
    total, peak, added = measure_memory(lambda: np.ones(25_000_000).sum())  # 0.2 GB
    assert total == 25_000_000
    assert 0.19 < added < 0.3
    assert added < peak


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="memory is measured on Linux only")
def test_memory_of_a_new_process_does_not_include_its_parent():
    block = np.ones(125_000_000)  # 1 GB
    assert 0.1 < call(idle_memory) < 0.9
    assert block.nbytes == 10**9
