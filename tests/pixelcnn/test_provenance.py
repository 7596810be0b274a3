import numpy as np
import pytest

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from pixelcnn.provenance import load_provenance
from vqvae.model import VQVAE

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_prior_finds_its_vqvae_and_tells_both(linked, phantom_archive):
    prior, vqvae = linked
    provenance = load_provenance(prior)
    assert provenance.run.path == vqvae.path
    train_positions = np.unique([record.position for record in phantom_archive.index])
    np.testing.assert_allclose(provenance.train_positions, train_positions, atol=1e-6)
    assert provenance.positions == (0.0, 1.0)
    splits = read_json(prior.metrics_path)["splits"]
    assert provenance.facts["vqvae_hash"] == read_json(prior.config_path)["vqvae_hash"]
    assert provenance.facts["prior_hash"] != provenance.facts["vqvae_hash"]
    for name in ("train", "validate", "test"):
        assert provenance.facts[f"nats_per_code_{name}"] == splits[name]["nats_per_code"]


def test_vqvae_that_moved_is_found_where_told(linked, tmp_path):
    prior, vqvae = linked
    vqvae.path.rename(tmp_path / "moved")
    with pytest.raises(InputError) as caught:
        load_provenance(prior)
    assert str(vqvae.path) in str(caught.value)
    assert "Give that VQ-VAE's folder as --vqvae." in str(caught.value)
    assert load_provenance(prior, tmp_path / "moved").run.path == tmp_path / "moved"


def test_another_vqvae_is_refused_by_both_hashes(linked):
    prior, vqvae = linked
    model_hash = load_provenance(prior).facts["vqvae_hash"]
    model = VQVAE.from_run(vqvae)
    model.set_weights([weights + 0.1 for weights in model.get_weights()])
    model.save(vqvae.model_path)
    with pytest.raises(InputError) as caught:
        load_provenance(prior)
    assert f"codes of the VQ-VAE {model_hash[:12]}" in str(caught.value)
    assert f"{vqvae.path} holds" in str(caught.value)
    assert "train a prior on this one" in str(caught.value)


def test_prior_that_has_not_scored_yet_is_linked(linked):
    """A training that was stopped after an epoch has a model, and no metrics."""
    prior, _ = linked
    prior.metrics_path.unlink()
    assert set(load_provenance(prior).facts) == {"vqvae_hash", "prior_hash"}


def test_costs_of_another_epoch_s_model_are_not_told(linked):
    """A training that went on and was stopped has a new model, and the metrics of the old one."""
    prior, _ = linked
    assert load_provenance(prior).facts["split"] == "test"
    with prior.history_path.open("a") as file:
        file.write("3\n")
    assert set(load_provenance(prior).facts) == {"vqvae_hash", "prior_hash"}


@pytest.mark.parametrize(
    "damage", [{"positions": []}, {"positions": "a"}, {"vqvae_run": None}], ids=str
)
def test_a_damaged_configuration_is_refused(linked, damage):
    prior, _ = linked
    write_json(prior.config_path, {**read_json(prior.config_path), **damage})
    with pytest.raises(InputError, match="config.json is damaged: `positions` must be a list"):
        load_provenance(prior)
