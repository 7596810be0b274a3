"""Runs that an earlier release wrote must load and answer as they did (tests/golden/README.md)."""

from pathlib import Path

import numpy as np
import pytest

from brainslices.runs.json_files import read_json
from brainslices.runs.run import Run

GOLDEN = Path(__file__).parent
SEED, POSITIONS = 0, np.array([0.25, 0.75])


def answers():
    """Name -> array: what the frozen runs say, from a picture to its cost and to samples."""
    from pixelcnn import PixelCNN, Sampler
    from pixelcnn.provenance import load_provenance
    from vqvae.model import VQVAE

    prior = Run(GOLDEN / "pixelcnn_run")
    link = load_provenance(prior, GOLDEN / "vqvae_run")
    model, vqvae = PixelCNN.from_run(prior), VQVAE.from_run(link.run)
    rows, cols = vqvae.image_shape
    waves = np.sin(np.arange(rows))[:, None] * np.cos(np.arange(cols) / 3)
    pictures = np.stack([(1 + waves) / 2, waves**2])[..., None]
    codes = vqvae.encode_to_codes(pictures.astype("float32"))
    (drawn,) = Sampler(model).batches(POSITIONS, SEED, batch_size=2)
    return {
        "codes": np.asarray(codes),
        "reconstruction": np.asarray(vqvae.decode_codes(codes))[:, ::6, ::5, 0],
        "log_prob": np.asarray(model.log_prob(codes, POSITIONS.astype("float32"))),
        "drawn_codes": np.asarray(drawn["codes"]),
    }


@pytest.mark.usefixtures("fresh_keras")
def test_frozen_runs_answer_as_they_did():
    expected, found = read_json(GOLDEN / "answers.json"), answers()
    assert list(found) == list(expected)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)
