import json
import math

import numpy as np
import pytest
from benchmarks.tutorial_vqvae import one_hot_quantize
from benchmarks.vqvae_benchmarks import MEASUREMENTS
from helpers import ROOT, python
from PIL import Image

from brainslices.data.phantom import phantom_slices
from vqvae.quantizer import nearest_codes

ROWS = [
    "benchmark.py --help",
    "prepare_data.py --help",
    "train_vqvae.py --help",
    "make the archive",
    "open the archive",
    "memory, train seed, float32",
    "memory, train seed, mixed_bfloat16",
    "memory, train default, float32",
    "memory, train default, mixed_bfloat16",
    "train seed, float32",
    "train seed, auto",
    "train default, float32",
    "train default, float32: arithmetic",
    "train default, mixed_bfloat16",
    "train default, mixed_bfloat16: arithmetic",
    "train small, float32",
    "input pipeline alone",
    "score with ssim and ssim_foreground",
    "reconstruct, default",
    "train seed on 40 slices, per slice",
    "memory, train seed on 40 slices",
    "quantise 20,000 latents, 64 codes",
    "quantise 20,000 x 64 latents, 512 codes",
    "memory, quantise 20,000 x 64 latents, 512 codes",
    "matrix products, float32",
    "matrix products, bfloat16",
    "memory copy",
    "longest pause between steps of short epochs",
]


# The fastest measurements.
FEW = ("archive", "evaluation", "machine")
FEW_PREFIXES = ("make the", "open the", "score", "reconstruct", "matrix", "memory copy")
FEW_ROWS = [row for row in ROWS if row.startswith(FEW_PREFIXES)]
ALL = (*FEW, "pauses", *(name for name in MEASUREMENTS if name not in FEW))


def test_one_hot_quantizer_returns_the_same_codes():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((500, 8), "float32")
    codebook = rng.standard_normal((32, 8), "float32")
    codes = np.asarray(nearest_codes(latents, codebook))
    np.testing.assert_allclose(one_hot_quantize(latents, codebook), codebook[codes], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("only", [FEW, pytest.param(ALL, marks=pytest.mark.long)])
def test_quick_benchmark_measures_every_row(phantom_archive, tmp_path, only):
    source = tmp_path / "images"
    source.mkdir()
    for subject in range(4):
        for number, image in enumerate(phantom_slices(subject, np.array([0.4, 0.6]), (32, 32))):
            Image.fromarray(image).save(source / f"case_{subject:03d}_slice_{number}.png")
    out = tmp_path / "results" / "benchmark.json"
    words = ["--data", phantom_archive.path, "--source", source, "--out", out, "--quick"]
    done = python(ROOT / "scripts" / "benchmark.py", *words, "--only", *only, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["environment"]["cores"] >= 1
    assert results["environment"]["versions"]["keras"]
    assert results["environment"]["archive_hash"] == phantom_archive.content_hash
    assert results["environment"]["quick"] is True
    rows = {row["name"]: row for row in results["rows"]}
    assert set(ROWS) <= set(rows) if only is not FEW else set(FEW_ROWS) == set(rows)
    for name, row in rows.items():
        assert math.isfinite(row["value"]) and row["value"] > 0, name
        if row["baseline"] is not None:
            assert row["baseline"] > 0 and row["ratio"] > 0 and row["baseline_name"], name
        assert name in done.stdout
    thresholds = {"make the archive": 30, "open the archive": 0.2}
    if only is not FEW:
        thresholds[ROWS[-1]] = 2
        thresholds["memory, train seed, float32"] = 1
        assert rows["train default, float32"]["at_least"] == 0.95
        assert rows["train seed, float32"]["at_least"] == 1.5
    assert {name: rows[name]["at_most"] for name in thresholds} == thresholds
    figures = set() if only is FEW else {"benchmark_time.png", "benchmark_memory.png"}
    assert {item.name for item in out.parent.iterdir()} == {out.name, *figures}
