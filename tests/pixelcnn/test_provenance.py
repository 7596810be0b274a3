import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from brainslices.runs.provenance import file_hash
from pixelcnn.provenance import load_provenance
from vqvae.model import VQVAE

pytestmark = pytest.mark.usefixtures("fresh_keras")


def decoder_of(model_hash):
    return SimpleNamespace(file_hash=model_hash)


def test_provenance_names_the_vqvae_and_both_hashes(linked, phantom_archive):
    prior, vqvae = linked
    provenance = load_provenance(prior)
    assert provenance.run.path == vqvae.path
    train_positions = np.unique([record.position for record in phantom_archive.index])
    np.testing.assert_allclose(provenance.train_positions, train_positions, atol=1e-6)
    assert provenance.positions == (0.0, 1.0)
    splits = read_json(prior.metrics_path)["splits"]
    assert provenance.metadata["vqvae_hash"] == read_json(prior.config_path)["vqvae_hash"]
    assert provenance.metadata["prior_hash"] != provenance.metadata["vqvae_hash"]
    for name in ("train", "validate", "test"):
        assert provenance.metadata[f"nats_per_code_{name}"] == splits[name]["nats_per_code"]


def test_moved_vqvae_is_read_from_its_new_folder(linked, tmp_path):
    prior, vqvae = linked
    vqvae.path.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=f"{vqvae.path}.*--vqvae"):
        load_provenance(prior)
    assert load_provenance(prior, tmp_path / "moved").run.path == tmp_path / "moved"


def test_another_vqvae_raises_with_both_hashes(linked):
    prior, vqvae = linked
    model_hash = load_provenance(prior).metadata["vqvae_hash"]
    model = VQVAE.from_run(vqvae)
    model.set_weights([weights + 0.1 for weights in model.get_weights()])
    model.save(vqvae.model_path)
    for options in (
        {},
        {"vqvae": vqvae.path},
        {"decoder": decoder_of(file_hash(vqvae.model_path))},
    ):
        with pytest.raises(InputError) as error:
            load_provenance(prior, **options)
        assert model_hash[:12] in str(error.value)
        assert file_hash(vqvae.model_path)[:12] in str(error.value)
        assert "--vqvae" in str(error.value)


def test_a_given_decoder_replaces_the_vqvae_s_run(linked):
    prior, vqvae = linked
    model_hash = load_provenance(prior).metadata["vqvae_hash"]
    shutil.rmtree(vqvae.path)
    for decoder in (decoder_of(model_hash), object()):
        assert load_provenance(prior, decoder=decoder).metadata["vqvae_hash"] == model_hash


def test_prior_without_metrics_has_hashes_only(linked):
    """An interrupted training has a model, and no metrics."""
    prior, _ = linked
    prior.metrics_path.unlink()
    assert set(load_provenance(prior).metadata) == {"vqvae_hash", "prior_hash"}


def test_metrics_of_an_earlier_model_are_left_out(linked):
    """A training that was resumed and interrupted has a new model, and metrics of the old one."""
    prior, _ = linked
    assert load_provenance(prior).metadata["split"] == "test"
    lines = prior.history_path.read_text().splitlines()
    _, _, scores = lines[-1].partition(",")
    prior.history_path.write_text("\n".join([*lines, f"3,{scores}"]))
    assert set(load_provenance(prior).metadata) == {"vqvae_hash", "prior_hash"}


@pytest.mark.parametrize(
    "damage", [{"positions": []}, {"positions": [-5, 7]}, {"vqvae_run": None}], ids=str
)
def test_a_corrupt_configuration_raises(linked, damage):
    prior, _ = linked
    write_json(prior.config_path, {**read_json(prior.config_path), **damage})
    (name,) = damage
    with pytest.raises(InputError, match=f"config.json .*`{name}`.* Received: {name}="):
        load_provenance(prior)
