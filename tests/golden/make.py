"""Writes the frozen runs of this folder anew; see README.md for when that is right.

python tests/golden/make.py
"""

import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from helpers import tiny_config, tiny_model, tiny_prior_config  # noqa: E402
from test_golden import answers  # noqa: E402

from brainslices.runs.json_files import write_json  # noqa: E402
from brainslices.runs.provenance import file_hash  # noqa: E402
from brainslices.runs.run import FORMAT_VERSION, Run  # noqa: E402
from pixelcnn import PixelCNN  # noqa: E402

VQVAE = {"channels": (2, 3), "num_embeddings": 8, "embedding_dim": 2}
PRIOR = {"channels": 6, "attention_heads": 2, "condition_width": 4, "head_width": 8}


def fill(variables):
    """Numbers that no random generator made, few enough to pack well."""
    for number, variable in enumerate(variables):
        inputs = max(1, np.prod(variable.shape[:-1]))
        numbers = np.sin(number + np.arange(1, 1 + np.prod(variable.shape)) ** 2)
        numbers = np.round(16 * np.sqrt(2 / inputs) * numbers) / 16
        variable.assign(numbers.reshape(variable.shape))


def write(kind, model, **facts):
    """A run folder with a model whose archive is packed, for git."""
    run = Run(HERE / f"{kind}_run")
    run.path.mkdir(exist_ok=True)
    model.save(run.model_path)
    with zipfile.ZipFile(run.model_path) as saved:
        parts = {part: saved.read(part) for part in saved.namelist()}
    with zipfile.ZipFile(run.model_path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for part, content in parts.items():
            packed.writestr(part, content)
    config = dataclasses.asdict(model.config)
    told = {"format_version": FORMAT_VERSION, "kind": kind, "model": config, "training": {}}
    write_json(run.config_path, {**told, "archive_hash": "golden", **facts})
    return run


def main():
    vqvae = tiny_model(**VQVAE)
    fill(vqvae.trainable_variables)
    codebook = np.stack([np.sin(np.arange(8)), np.cos(np.arange(8))], axis=1)
    vqvae.quantizer._assign_codebook(codebook.astype("float32"))
    written = write("vqvae", vqvae)

    config = dataclasses.asdict(tiny_prior_config(**PRIOR))
    prior = PixelCNN(vqvae.code_grid_shape, tiny_config(**VQVAE).num_embeddings, **config)
    prior.build()
    fill(prior.trainable_variables)
    ties = {
        "vqvae_run": "vqvae_run",
        "vqvae_hash": file_hash(written.model_path),
        "positions": [0, 1],
    }
    write("pixelcnn", prior, **ties)
    write_json(HERE / "answers.json", {name: each.tolist() for name, each in answers().items()})


if __name__ == "__main__":
    main()
