import json
import math

import numpy as np
import pytest
from benchmarks import pixelcnn_benchmarks as benchmark
from benchmarks.harness import PROCESS_STATUS, Setting
from benchmarks.pixelcnn_benchmarks import NaiveSampler
from helpers import ROOT, python
from tiny_prior import GRID, tiny_pixelcnn

from pixelcnn.masks import SCANS
from pixelcnn.sampling import Sampler, uniform_noise

SAMPLING_ROWS = {
    "sample 16 slices of 8 x 8 codes",
    "sample 16 slices of 8 x 8 codes, against one pass",
    "sample 16 slices of 8 x 8 codes, 2 attention layers",
    "sample 16 slices of 8 x 8 codes, 2 attention layers, against one pass",
    "surprise of 16 slices of 8 x 8 codes",
}
OTHER_ROWS = {
    "sample 16 slices of 8 x 8 codes, two conditions",
    "sample 16 slices of 8 x 8 codes, guidance",
    "sample a slice, 4 x 4 codes",
    "sample a slice, 8 x 8 codes",
    "sample a slice, 1 at a time",
    "sample a slice, 2 at a time",
    "train default prior, float32",
    "train default prior, float32: arithmetic",
    "train default prior, mixed_bfloat16",
    "train default prior, mixed_bfloat16: arithmetic",
}
MEMORY_ROWS = {
    "memory, sample 16 slices",
    "memory, sample 160 slices",
    "memory, sample 16 slices of 4 x 4 codes",
}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_keras")
@pytest.mark.parametrize("scan", SCANS)
def test_naive_sampler_samples_the_same_codes_with_the_same_noise(scan):
    model = tiny_pixelcnn(scan=scan)
    position, uniform = np.float32([0.1, 0.5, 0.9]), uniform_noise(3, range(3), GRID)
    codes = Sampler(model)(position, uniform)["codes"].reshape(3, -1)
    count = 13
    naive = NaiveSampler(model)(position, uniform, count).reshape(3, -1)
    sampled, rest = model.scan_order[:count], model.scan_order[count:]
    np.testing.assert_array_equal(naive[:, sampled], codes[:, sampled])
    assert len(np.unique(naive[:, sampled])) > 1
    assert not naive[:, rest].any()


@pytest.mark.slow
def test_thresholds_of_sampling(monkeypatch, tmp_path):
    def fixed_medians(candidates, rounds):
        return {"cached": 2.0, "naive": 4.0, "pass": 1.0}

    monkeypatch.setattr(benchmark, "interleaved_medians", fixed_medians)
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path, quick=True)
    naive, one_pass, *_ = benchmark.measure_sampling(setting)
    # 64 codes, of which 4 were timed: 16 times 4 s.
    assert (naive.ratio, naive.at_least, naive.is_met) == (32, 400, False)
    # At most 2.5 times the pass's second.
    assert (one_pass.ratio, one_pass.at_least, one_pass.is_met) == (0.5, 0.4, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "expected"),
    [
        pytest.param(("sampling", "scoring"), SAMPLING_ROWS, marks=pytest.mark.long),
        pytest.param(("conditions", "growth", "prior"), OTHER_ROWS, marks=pytest.mark.long),
        pytest.param(("sampling_memory",), MEMORY_ROWS, marks=pytest.mark.long),
    ],
    ids=["sampling", "growth and training", "memory"],
)
def test_quick_benchmark_measures_every_row(phantom_archive, tmp_path, only, expected):
    out = tmp_path / "benchmark.json"
    words = ["--data", phantom_archive.path, "--out", out, "--quick"]
    done = python(ROOT / "scripts" / "benchmark.py", *words, "--only", *only, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    is_unmeasured = expected is MEMORY_ROWS and not PROCESS_STATUS.exists()
    assert set(rows) == (set() if is_unmeasured else expected)
    for name, row in rows.items():
        assert math.isfinite(row["value"]) and row["value"] > 0, name
        if row["baseline"] is not None:
            assert row["baseline"] > 0 and row["ratio"] > 0 and row["baseline_name"], name
        assert name in done.stdout
