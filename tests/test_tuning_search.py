import pytest

from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.search import share_of_cores, visible_gpus
from tuning.trial import check


def test_archive_that_is_none_is_refused_before_the_first_trial(tmp_path):
    with pytest.raises(InputError, match="is no slice archive"):
        check(tmp_path / "absent", SearchConfig())


def test_check_tells_what_makes_two_searches_the_same(phantom_archive):
    told = check(phantom_archive.path, SearchConfig(precision="float32"))
    assert told == check(phantom_archive.path, SearchConfig(precision="float32"))
    fixed = check(phantom_archive.path, SearchConfig(precision="float32", fix=("downsampling=8",)))
    assert fixed["space"] != told["space"]
    assert (told["precision"], told["space_hash"]) == ("float32", None)
    assert told["archive_hash"] == phantom_archive.content_hash


@pytest.mark.parametrize(
    ("asked", "count", "expected"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("2, 3", 2, ["2", "3"]),
        ("GPU-8f, GPU-9a", 2, ["GPU-8f", "GPU-9a"]),
        ("", 0, []),
    ],
)
def test_workers_get_the_gpus_that_the_user_left(monkeypatch, asked, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible_gpus(count) == expected


@pytest.mark.parametrize(("cores", "workers"), [({0, 1, 2, 3, 4}, 2), ({4, 6}, 2), ({1}, 3)])
def test_cores_are_dealt_whole_and_nobody_goes_without(monkeypatch, cores, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
    shares = [share_of_cores(number, workers) for number in range(workers)]
    assert all(shares)
    assert {core for share in shares for core in share} == cores
    if len(cores) >= workers:
        assert sum(map(len, shares)) == len(cores)
