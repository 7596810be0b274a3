"""Write the golden runs of this folder again; README.md says when that is justified.

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
from test_golden import model_outputs  # noqa: E402

from brainslices.runs.json_files import write_json  # noqa: E402
from brainslices.runs.provenance import file_hash  # noqa: E402
from brainslices.runs.run import FORMAT_VERSION, Run  # noqa: E402
from pixelcnn import PixelCNN  # noqa: E402

VQVAE = {"channels": (2, 3), "num_embeddings": 8, "embedding_dim": 2}
PRIOR = {"channels": 6, "attention_heads": 2, "condition_width": 4, "head_width": 8}


def fill(variables):
    """Assign numbers that do not depend on a random generator and compress well."""
    for number, variable in enumerate(variables):
        inputs = max(1, np.prod(variable.shape[:-1]))
        numbers = np.sin(number + np.arange(1, 1 + np.prod(variable.shape)) ** 2)
        numbers = np.round(16 * np.sqrt(2 / inputs) * numbers) / 16
        variable.assign(numbers.reshape(variable.shape))


def write(kind, model, **provenance):
    """Write a run folder with a model, its zip file compressed for git."""
    run = Run(HERE / f"{kind}_run")
    run.path.mkdir(exist_ok=True)
    model.save(run.model_path)
    with zipfile.ZipFile(run.model_path) as saved:
        parts = {part: saved.read(part) for part in saved.namelist()}
    with zipfile.ZipFile(run.model_path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for part, content in parts.items():
            packed.writestr(part, content)
    config = dataclasses.asdict(model.config)
    values = {"format_version": FORMAT_VERSION, "kind": kind, "model": config, "training": {}}
    write_json(run.config_path, {**values, "archive_hash": "golden", **provenance})
    return run


def main():
    vqvae = tiny_model(**VQVAE)
    fill(vqvae.trainable_variables)
    codebook = np.stack([np.sin(np.arange(8)), np.cos(np.arange(8))], axis=1)
    vqvae.quantizer._assign_codebook(codebook.astype("float32"))
    run = write("vqvae", vqvae)

    config = dataclasses.asdict(tiny_prior_config(**PRIOR))
    prior = PixelCNN(vqvae.code_grid_shape, tiny_config(**VQVAE).num_embeddings, **config)
    prior.build()
    fill(prior.trainable_variables)
    vqvae_hash = file_hash(run.model_path)
    write("pixelcnn", prior, vqvae_run="vqvae_run", vqvae_hash=vqvae_hash, positions=[0, 1])
    outputs = {name: values.tolist() for name, values in model_outputs().items()}
    write_json(HERE / "answers.json", outputs)


if __name__ == "__main__":
    main()
