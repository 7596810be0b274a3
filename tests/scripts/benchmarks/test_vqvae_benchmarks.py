import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks.harness import (
    PROCESS_STATUS,
    PeakMemory,
    Row,
    Setting,
    interleaved_medians,
    measure_all,
)
from benchmarks.harness import table as as_table
from benchmarks.tutorial_vqvae import one_hot_quantize
from benchmarks.vqvae_benchmarks import MEASUREMENTS
from PIL import Image

from brainslices.data.phantom import phantom_slices
from brainslices.errors import InputError
from vqvae.quantizer import nearest_codes

ROOT = Path(__file__).parents[3]
ROWS = [
    "benchmark.py --help",
    "prepare_data.py --help",
    "train_vqvae.py --help",
    "make the archive",
    "open the archive",
    "memory, train seed, float32",
    "memory, train seed, float32: anonymous",
    "memory, train seed, float32: file-backed",
    "memory, train seed, mixed_bfloat16",
    "memory, train default, float32",
    "memory, train default, mixed_bfloat16",
    "train seed, float32",
    "train seed, auto",
    "train default, float32",
    "train default, float32: arithmetic",
    "train default, mixed_bfloat16",
    "train default, mixed_bfloat16: arithmetic",
    "input path alone",
    "score with ssim and ssim_foreground",
    "reconstruct, default",
    "train seed on 40 slices, a slice",
    "memory, train seed on 40 slices",
    "quantise 20,000 latents, 64 codes",
    "quantise 20,000 x 64 latents, 512 codes",
    "memory, quantise 20,000 x 64 latents, 512 codes",
    "products of matrices, float32",
    "products of matrices, bfloat16",
    "copy in the host's memory",
]


# Those that take the least time, for every day.
FEW = ("archive", "default", "evaluation", "machine")
ALL = ("machine", *MEASUREMENTS)
FEW_KINDS = (
    *("make the", "open the", "train default,", "input", "score", "reconstruct"),
    *("products", "copy"),
)
FEW_ROWS = [row for row in ROWS if row.startswith(FEW_KINDS)]


def test_ratio_is_above_one_where_ours_is_better():
    assert Row("a", "slices/s", ours=30.0, peer=10.0).ratio == 3
    assert Row("a", "s", ours=10.0, peer=30.0).ratio == 3
    assert Row("a", "GB", ours=4.0, peer=1.0).ratio == 0.25
    assert Row("a", "s", ours=10.0).ratio is None


def test_bars_bind_figure_or_ratio():
    assert Row("a", "s", ours=1.0, at_most=1.0).met is True
    assert Row("a", "s", ours=1.1, at_most=1.0).met is False
    assert Row("a", "slices/s", ours=3.0, peer=2.0, at_least=1.5).met is True
    assert Row("a", "slices/s", ours=2.9, peer=2.0, at_least=1.5).met is False
    assert Row("a", "s", ours=1.0).met is None


def test_table_shows_a_missed_bar():
    lines = as_table([Row("fast", "s", 0.5, at_most=1.0), Row("slow", "s", 2.0, at_most=1.0)])
    _, fast, slow = lines.splitlines()
    assert fast.split() == ["fast", "0.5", "s", "<=", "1", "s", "met"]
    assert slow.split() == ["slow", "2", "s", "<=", "1", "s", "MISSED"]


def test_table_tells_the_peer_below_its_row():
    row = Row("train", "slices/s", 30.0, peer=20.0, against="plain `fit`", note="in float32")
    _, figures, remark = as_table([row]).splitlines()
    assert figures.split() == ["train", "30", "20", "slices/s", "1.5x"]
    assert remark.strip() == "peer: plain `fit`; in float32"


def test_alternate_takes_turns_and_gives_medians():
    calls, figures = [], iter([1.0, 10.0, 5.0, 30.0, 2.0, 20.0])

    def side(name):
        calls.append(name)
        return next(figures)

    found = interleaved_medians({"a": lambda: side("a"), "b": lambda: (side("b"), 0.0)}, rounds=3)
    assert calls == ["a", "b"] * 3
    assert found == {"a": (2.0,), "b": (20.0, 0.0)}


def test_unknown_measurement_is_refused_before_any_is_taken(tmp_path):
    setting = Setting(archive=tmp_path, scripts=tmp_path, workspace=tmp_path)
    with pytest.raises(InputError, match="must name some of seed. Received: 'sed'"):
        measure_all({"seed": lambda setting: pytest.fail("taken")}, setting, ["seed", "sed"])


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="memory is read from Linux's /proc")
def test_peak_memory_sees_what_is_gone_at_the_end():
    with PeakMemory() as peak:
        block = np.ones(25_000_000)  # 0.2 GB
        time.sleep(0.1)
        del block
    assert 0.19 < peak.resident - peak.before < 0.3
    assert peak.parts["anonymous"] > 0.19


def test_plain_quantizer_gives_the_same_codes():
    draw = np.random.default_rng(0).standard_normal
    latents, codebook = draw((500, 8), "float32"), draw((32, 8), "float32")
    codes = np.asarray(nearest_codes(latents, codebook))
    np.testing.assert_allclose(one_hot_quantize(latents, codebook), codebook[codes], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("only", [FEW, pytest.param(ALL, marks=pytest.mark.long)])
def test_quick_benchmark_measures_every_row(phantom_archive, tmp_path, only):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for subject in range(4):
        for number, image in enumerate(phantom_slices(subject, np.array([0.4, 0.6]), (32, 32))):
            Image.fromarray(image).save(pictures / f"case_{subject:03d}_slice_{number}.png")
    out = tmp_path / "results" / "benchmark.json"
    words = ["--data", phantom_archive.path, "--source", pictures, "--out", out, "--quick"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *words, "--only", *only],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["environment"]["cores"] >= 1
    assert found["environment"]["versions"]["keras"]
    assert found["environment"]["archive_hash"] == phantom_archive.content_hash
    assert found["environment"]["quick"] is True
    rows = {row["name"]: row for row in found["rows"]}
    assert set(ROWS) <= set(rows) if only is not FEW else set(FEW_ROWS) == set(rows)
    for name, row in rows.items():
        assert math.isfinite(row["ours"]) and row["ours"] > 0, name
        assert row["peer"] is None or (row["peer"] > 0 and row["ratio"] > 0 and row["against"])
        assert name in done.stdout
    bars = {"make the archive": 30, "open the archive": 0.2}
    assert rows["train default, float32"]["at_least"] == 0.95
    if only is not FEW:
        bars["memory, train seed, float32"] = 1
        assert rows["train seed, float32"]["at_least"] == 1.5
    assert {name: rows[name]["at_most"] for name in bars} == bars
    figures = set() if only is FEW else {"benchmark_time.png", "benchmark_memory.png"}
    assert {item.name for item in out.parent.iterdir()} == {out.name, *figures}
