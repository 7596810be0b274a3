import pytest

from tuning.search import share_of_cores, visible_gpus


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
