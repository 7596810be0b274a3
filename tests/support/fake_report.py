"""Folders of runs, a reconstruction, samples and a search, without any training."""

import csv

import numpy as np
from fake_trials import TRIALS, write_trial
from helpers import save_image

from brainslices.runs.json_files import write_json
from brainslices.visualization.examples import write_examples
from brainslices.visualization.figures import ReconstructionRow


def scores(ssim, ssim_foreground, psnr_db):
    """Scores with intervals of 0.02 on both sides."""
    values = {"ssim": ssim, "ssim_foreground": ssim_foreground, "psnr_db": psnr_db}
    lows = {f"{name}_low": round(value - 0.02, 4) for name, value in values.items()}
    highs = {f"{name}_high": round(value + 0.02, 4) for name, value in values.items()}
    return values | lows | highs


SCORES = scores(0.95, 0.9, 30.0)
RECONSTRUCTION = {
    **SCORES,
    "floor_black": scores(0.6, 0.0, 9.0),
    "floor_mean_image": scores(0.7, 0.3, 19.0),
    "codec_avif": scores(0.9, 0.8, 29.0) | {"bits_per_pixel": 0.08},
    "codebook_usage": 0.75,
    "num_embeddings": 16,
    "bits_per_pixel_raw": 0.079,
    "subjects": 2,
    "slices": 6,
    "split": "test",
}
SAMPLING = {
    "samples": 4,
    "temperature": 1.0,
    "seed": 0,
    "pairwise_ms_ssim": 0.81,
    "pairwise_ms_ssim_real": 0.83,
    "nearest_train_ssim": 0.78,
    "nearest_train_ssim_real": 0.8,
    "frechet_distance": 0.02,
    "frechet_distance_real": 0.0086,
    "density": 0.9,
    "coverage": 0.8,
}
PRIOR_METRICS = {
    "epochs": 2,
    "epoch": 2,
    "nats_per_code": 3.5,
    "nats_per_code_by_position": 4.4,
    "splits": {
        name: {"nats_per_code": nats, "bits_per_slice": 100.0, "bits_per_pixel_prior": 0.044}
        | {"nats_per_code_by_position": 4.4}
        for name, nats in (("train", 3.4), ("validate", 3.5), ("test", 3.5))
    },
}


def write_run(folder, kind="vqvae", epochs=2, metrics=None, **environment):
    """Write a run that has trained some of 2 epochs; with metrics, to its end."""
    config = {"format_version": 1, "kind": kind, "archive_hash": "a" * 64}
    config |= {"model": {"num_embeddings": 16}, "training": {"epochs": 2}}
    if kind == "pixelcnn":
        config |= {"vqvae_hash": "b" * 64, "vqvae_run": str(folder / "gone"), "positions": [0, 1]}
    write_json(folder / "config.json", config)
    write_json(folder / "environment.json", {"versions": {"keras": "3"}, **environment})
    column = "nats_per_code" if kind == "pixelcnn" else "ssim_foreground"
    rows = [f"{epoch},{0.5 + 0.1 * epoch},0.5\n" for epoch in range(1, epochs + 1)]
    if epochs:
        header = f"epoch,val_{column},learning_rate\n"
        (folder / "history.csv").write_text(header + "".join(rows))
        (folder / "model.keras").write_bytes(b"model")
    if metrics:
        write_json(folder / "metrics.json", metrics)
    return folder


def write_reconstruction(folder, **changes):
    """Write the output of reconstruct.py: three examples with stripes of different grey."""
    write_json(folder / "metrics.json", RECONSTRUCTION | changes)
    rows = [
        ReconstructionRow(
            label,
            f"case_1_slice_{number}",
            original=np.full((12, 16), 0.2, "float32"),
            codes=np.full((3, 4), number),
            reconstruction=np.full((12, 16), 0.6, "float32"),
            similarity=np.linspace(0, 1, 192, dtype="float32").reshape(12, 16),
            ssim=0.9,
            ssim_foreground=0.8,
        )
        for number, label in enumerate(("best", "median", "worst"))
    ]
    write_examples(folder / "examples.npz", rows, np.bincount([0, 1, 1, 2], minlength=16))
    return folder


def write_sampling(folder, with_nearest=True, **changes):
    """Write the output of sample.py --evaluate, or only its pictures."""
    names = [f"sample_000{n}_position_{n / 3:.3f}.png" for n in range(4)]
    for name in names:
        save_image(folder / "slices" / name)
    metrics = SAMPLING | changes
    if with_nearest:
        for name in names:
            save_image(folder / "nearest" / name)
        with (folder / "nearest.csv").open("w", newline="") as file:
            rows = [[name, f"train_{number}", 0.75] for number, name in enumerate(names)]
            csv.writer(file).writerows([["sample", "slice_id", "ssim"], *rows])
    else:
        metrics = {name: metrics[name] for name in ("samples", "temperature", "seed")}
    write_json(folder / "metrics.json", metrics)
    return folder


def write_scoring(folder, **changes):
    """Write the output of score.py, with a small figure."""
    names = ("bits_per_slice", "nats_per_code", "percentile")
    values = {f"{name}{end}": 50.0 for name in names for end in ("", "_low", "_high")}
    values |= {"nats_per_code_validate": 3.5, "subjects": 2, "slices": 6}
    write_json(folder / "metrics.json", values | changes)
    save_image(folder / "surprise.png", mode="RGBA")
    return folder


def write_search(folder):
    """Write the folder of a search with the trials of `fake_trials`."""
    description = {"archive_hash": "a" * 64, "precision": "float32", "space": []}
    write_json(
        folder / "search.json", description | {"search": {"objective": "val_rate_distortion"}}
    )
    for trial in TRIALS:
        write_trial(folder, trial)
    return folder
