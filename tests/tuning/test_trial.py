import pytest
from helpers import ROOT, tiny_prior_config

import tuning.trial
from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.trial import describe_search

SPACE = str(ROOT / "tests" / "support" / "tiny_space.py")


@pytest.fixture
def describe(phantom_archive, monkeypatch):
    monkeypatch.setattr(tuning.trial, "PRIOR", tiny_prior_config())

    def describe(*fix, devices=None):
        config = SearchConfig(space=SPACE, precision="float32", fix=fix)
        return describe_search(phantom_archive.path, config, devices)

    return describe


def test_missing_archive_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent"):
        describe_search(tmp_path / "absent", SearchConfig())


def test_description_identifies_a_search(describe, phantom_archive):
    free, fixed = describe(), describe("num_embeddings=8", "learning_rate=0.001")
    assert free["space"] != fixed["space"]
    assert (free["fix"], free["precision"]) == ([], "float32")
    assert fixed["fix"] == ["learning_rate=0.001", "num_embeddings=8"]
    assert free["archive_hash"] == phantom_archive.content_hash
    # Neither spelling nor order of the fixed values matters.
    assert fixed == describe("learning_rate=1e-3", "num_embeddings=8.0")


def test_batches_that_the_devices_do_not_divide_are_refused(describe, monkeypatch):
    monkeypatch.setattr(tuning.trial, "count_devices", lambda: 3)
    with pytest.raises(InputError, match="multiple of 3"):
        describe()
    describe(devices=1)  # one of several workers has one device
