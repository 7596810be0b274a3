import numpy as np
import pytest

from brainslices.errors import InputError
from brainslices.runs import read_json, write_json
from pixelcnn.link import linked_vqvae
from vqvae.reconstruction import load_vqvae

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_prior_finds_its_vqvae_and_tells_both(linked, phantom_archive):
    prior, vqvae = linked
    link = linked_vqvae(prior)
    assert link.run.path == vqvae.path
    levels = np.unique([record.position for record in phantom_archive.index])
    np.testing.assert_allclose(link.levels, levels, atol=1e-6)
    assert link.positions == (0.0, 1.0)
    splits = read_json(prior.metrics_path)["splits"]
    assert link.facts["vqvae_hash"] == read_json(prior.config_path)["vqvae_hash"]
    assert link.facts["prior_hash"] != link.facts["vqvae_hash"]
    for name in ("train", "validate", "test"):
        assert link.facts[f"nats_per_code_{name}"] == splits[name]["nats_per_code"]


def test_vqvae_that_moved_is_found_where_told(linked, tmp_path):
    prior, vqvae = linked
    vqvae.path.rename(tmp_path / "moved")
    with pytest.raises(InputError) as caught:
        linked_vqvae(prior)
    assert str(vqvae.path) in str(caught.value)
    assert "Give that VQ-VAE's folder as --vqvae." in str(caught.value)
    assert linked_vqvae(prior, tmp_path / "moved").run.path == tmp_path / "moved"


def test_another_vqvae_is_refused_by_both_hashes(linked):
    prior, vqvae = linked
    model_hash = linked_vqvae(prior).facts["vqvae_hash"]
    model = load_vqvae(vqvae)
    model.set_weights([weights + 0.1 for weights in model.get_weights()])
    model.save(vqvae.model_path)
    with pytest.raises(InputError) as caught:
        linked_vqvae(prior)
    assert f"codes of the VQ-VAE {model_hash[:12]}" in str(caught.value)
    assert f"{vqvae.path} holds" in str(caught.value)
    assert "train a prior on this one" in str(caught.value)


def test_prior_that_has_not_scored_yet_is_linked(linked):
    """A training that was stopped after an epoch has a model, and no metrics."""
    prior, _ = linked
    prior.metrics_path.unlink()
    assert set(linked_vqvae(prior).facts) == {"vqvae_hash", "prior_hash"}


def test_costs_of_another_epoch_s_model_are_not_told(linked):
    """A training that went on and was stopped has a new model, and the metrics of the old one."""
    prior, _ = linked
    assert linked_vqvae(prior).facts["split"] == "test"
    with prior.history_path.open("a") as file:
        file.write("3\n")
    assert set(linked_vqvae(prior).facts) == {"vqvae_hash", "prior_hash"}


@pytest.mark.parametrize(
    "damage", [{"positions": []}, {"positions": "a"}, {"vqvae_run": None}], ids=str
)
def test_a_damaged_configuration_is_refused(linked, damage):
    prior, _ = linked
    write_json(prior.config_path, {**read_json(prior.config_path), **damage})
    with pytest.raises(InputError, match="config.json is damaged: `positions` must be a list"):
        linked_vqvae(prior)
