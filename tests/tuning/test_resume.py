"""Lock and resume a search folder; `describe_search` is replaced, so no models are built."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_trials import TRIALS, write_trial
from filelock import FileLock
from helpers import ROOT

import tuning.resume
from brainslices.errors import InputError
from brainslices.runs.json_files import read_json, write_json
from tuning.config import SearchConfig
from tuning.resume import locked_search, read_description, resumed_config

SPACE = ROOT / "tests" / "support" / "tiny_space.py"
CONFIG = SearchConfig(space=str(SPACE), trials=5)
DESCRIPTION = {
    "archive_hash": "a" * 64,
    "precision": "float32",
    "space": [{"name": "num_embeddings"}],
    "space_hash": "b" * 64,
    "defaults": [{}, {}],
}


@pytest.fixture(autouse=True)
def search_description(monkeypatch):
    """What the description of a search holds; tests change it."""
    description = dict(DESCRIPTION)

    def call(function, data, config, devices):
        return {**description, "fix": list(config.fix)}

    monkeypatch.setattr(tuning.resume, "call", call)
    return description


def start_search(out, config=CONFIG):
    with locked_search(Path("data"), out, config, None) as resumed:
        return resumed


def test_search_resumes_with_its_precision_and_its_copy_of_the_space(tmp_path, search_description):
    first = start_search(tmp_path / "out")
    assert first.space == str(tmp_path / "out" / "space.py")
    assert Path(first.space).read_text() == SPACE.read_text()
    search_description["precision"] = "mixed_bfloat16"
    assert start_search(tmp_path / "out", replace(CONFIG, trials=9)) == replace(first, trials=9)
    description = read_json(tmp_path / "out" / "search.json")
    assert (description["kind"], description["precision"]) == ("search", "float32")
    assert description["search"]["trials"] == 9
    assert description["search"]["space"] == "tiny_space.py"
    worker = resumed_config(Path("data"), tmp_path / "out", replace(CONFIG, trials=9))
    assert worker == replace(first, trials=9)


def test_finalists_are_added_later_and_keep_their_length(tmp_path):
    start_search(tmp_path)
    longer = replace(CONFIG, finalists=2, final_epochs=30, final_seeds=1)
    assert start_search(tmp_path, longer).final_epochs == 30
    write_trial(tmp_path, replace(TRIALS[0], name="5", final_seed=0))
    assert start_search(tmp_path, replace(longer, finalists=3)).finalists == 3
    for changes in ({"final_epochs": 20}, {"final_seeds": 2}, {"final_prior_epochs": 30}):
        with pytest.raises(InputError, match=next(iter(changes))):
            start_search(tmp_path, replace(longer, **changes))
    # A command that asks for no finalists adds trials, and keeps the length of the earlier ones.
    more = start_search(tmp_path, replace(CONFIG, trials=9))
    assert (more.trials, more.final_epochs, more.final_seeds) == (9, 30, 1)
    assert read_description(tmp_path)["search"]["final_epochs"] == 30


def test_search_from_before_finalists_is_resumed(tmp_path):
    start_search(tmp_path)
    description = read_json(tmp_path / "search.json")
    description["search"] = {
        key: value for key, value in description["search"].items() if not key.startswith("final")
    }
    write_json(tmp_path / "search.json", description)
    assert start_search(tmp_path, replace(CONFIG, finalists=1)).finalists == 1


@pytest.mark.parametrize(
    ("config", "description", "message"),
    [
        (replace(CONFIG, epochs=3), {}, "epochs=6 .*3"),
        (replace(CONFIG, fix=("num_embeddings=8",)), {}, "fix="),
        (CONFIG, {"archive_hash": "c" * 64}, "archive .*aaaaaaaaaaaa"),
        (CONFIG, {"space": []}, "space"),
        (CONFIG, {"space_hash": "c" * 64}, "function"),
        (CONFIG, {"defaults": [{}]}, "function"),
        (replace(CONFIG, trials=4), {}, "`trials`.*Received: trials=4"),
    ],
)
def test_another_search_is_refused(tmp_path, search_description, config, description, message):
    start_search(tmp_path)
    for trial in TRIALS:
        write_trial(tmp_path, trial)
    before = (tmp_path / "search.json").read_bytes()
    search_description.update(description)
    with pytest.raises(InputError, match=message):
        start_search(tmp_path, config)
    assert (tmp_path / "search.json").read_bytes() == before


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="thesis.txt"):
        start_search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        start_search(tmp_path / "thesis.txt")


def test_search_in_use_is_refused(tmp_path):
    start_search(tmp_path)
    before = (tmp_path / "search.json").read_bytes()
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="in use"):
        start_search(tmp_path, replace(CONFIG, trials=9))
    assert (tmp_path / "search.json").read_bytes() == before


def test_incomplete_description_is_refused(tmp_path):
    start_search(tmp_path)
    write_json(tmp_path / "search.json", {"archive_hash": "a"})
    with pytest.raises(InputError, match="search.json .*lacks precision, search, space"):
        start_search(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"objective": "loss"}, {"objective": []}, 3])
def test_description_without_a_known_objective_is_refused(tmp_path, settings):
    start_search(tmp_path)
    path = tmp_path / "search.json"
    write_json(path, {**read_json(path), "search": settings})
    with pytest.raises(InputError, match=r"search\.json.*`search` must be .*objective"):
        read_description(tmp_path)
