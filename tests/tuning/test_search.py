import socket

import pytest

from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.search import _require_port, share_of_cores, visible_gpus
from tuning.trial import check


def test_archive_that_is_none_is_refused_before_the_first_trial(tmp_path):
    with pytest.raises(InputError, match="archive.json"):
        check(tmp_path / "absent", SearchConfig())


def test_check_tells_what_makes_two_searches_the_same(phantom_archive):
    told = check(phantom_archive.path, SearchConfig(precision="float32"))
    assert told == check(phantom_archive.path, SearchConfig(precision="float32"))
    fixed = check(phantom_archive.path, SearchConfig(precision="float32", fix=("downsampling=8",)))
    assert fixed["space"] != told["space"]
    assert (told["fix"], fixed["fix"]) == ([], ["downsampling=8"])
    assert (told["precision"], told["space_hash"]) == ("float32", None)
    assert told["archive_hash"] == phantom_archive.content_hash


def test_fixed_value_is_told_in_one_spelling(phantom_archive):
    asked = {"space": "full", "precision": "float32"}
    one = check(phantom_archive.path, SearchConfig(fix=("magnification=1", "width=64"), **asked))
    other = check(
        phantom_archive.path, SearchConfig(fix=("width=64", "magnification=1.0"), **asked)
    )
    assert one == other


def test_batches_that_the_devices_cannot_share_are_refused(phantom_archive, monkeypatch):
    monkeypatch.setattr("tuning.trial.device_count", lambda: 3)
    with pytest.raises(InputError, match="must be a multiple of 3"):
        check(phantom_archive.path, SearchConfig(precision="float32"))
    # A worker among others has one device.
    check(phantom_archive.path, SearchConfig(precision="float32"), devices=1)


def test_port_of_another_chief_is_refused(monkeypatch):
    monkeypatch.setattr("tuning.search.ORACLE_S", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port} .*in use"):
            _require_port("127.0.0.1", port)
    _require_port("127.0.0.1", port)
    for address, port in (("192.0.2.1", "8000"), ("127.0.0.1", "http"), ("127.0.0.1", "99999")):
        with pytest.raises(InputError, match=f"cannot listen at {address}:{port}"):
            _require_port(address, port)


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
