"""The nats of all codes under a prior, of the slices that they belong to."""

import numpy as np
import pytest
from tiny_prior import CODES, tiny_inputs, tiny_pixelcnn

from brainslices.data.slices import open_slices
from brainslices.errors import InputError
from pixelcnn.entropy_model import EntropyModel

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_nats_are_those_of_the_model_at_the_position_of_each_row():
    model, inputs = tiny_pixelcnn(), tiny_inputs(4)
    entropy_model = EntropyModel(model, inputs["position"], {})
    rows = np.array([3, 1, 1])
    codes, every_code = inputs["codes"][rows], np.arange(CODES)
    nats = entropy_model(codes, np.broadcast_to(every_code, (*codes.shape, CODES)), rows)
    np.testing.assert_allclose(np.exp(-nats).sum(axis=-1), 1, rtol=1e-5)
    own = entropy_model(codes, codes[..., None], rows)[..., 0]
    np.testing.assert_allclose(own, np.take_along_axis(nats, codes[..., None], -1)[..., 0])
    log_prob = np.asarray(model.log_prob(inputs["codes"], inputs["position"]))
    np.testing.assert_allclose(own, -log_prob[rows], rtol=1e-4, atol=1e-5)


def test_positions_are_those_of_the_slices(linked, phantom_archive):
    prior, vqvae = linked
    slices = open_slices(phantom_archive.path, "test")
    entropy_model = EntropyModel.from_run(prior, vqvae, slices)
    positions = [record.position for record in slices.records]
    np.testing.assert_allclose(entropy_model.position, positions, rtol=1e-6)
    assert set(entropy_model.metadata) == {"vqvae_hash", "prior_hash"}


def test_prior_of_another_vqvae_is_refused(linked, phantom_archive):
    prior, vqvae = linked
    with vqvae.model_path.open("ab") as file:
        file.write(b"changed")
    with pytest.raises(InputError, match="models codes of the VQ-VAE"):
        EntropyModel.from_run(prior, vqvae, open_slices(phantom_archive.path, "test"))
