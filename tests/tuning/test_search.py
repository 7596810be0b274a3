import socket
from multiprocessing.process import BaseProcess

import pytest

import tuning.pool
import tuning.search
from brainslices.errors import InputError
from tuning.config import SearchConfig
from tuning.pool import MAX_RESTARTS, WorkerPool, visible_gpus
from tuning.search import _check_port, join


def test_port_of_another_chief_is_refused(monkeypatch):
    monkeypatch.setattr("tuning.search.LOCK_TIMEOUT_S", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(InputError, match=f"127.0.0.1:{port} .*in use"):
            _check_port("127.0.0.1", port)
    _check_port("127.0.0.1", port)
    for address, port in (("192.0.2.1", "8000"), ("127.0.0.1", "http"), ("127.0.0.1", "99999")):
        with pytest.raises(InputError, match=f"{address}:{port}"):
            _check_port(address, port)


def test_worker_without_a_chief_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.search, "CONNECT_TIMEOUT_S", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    with pytest.raises(InputError, match="KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT must be"):
        join(tmp_path, tmp_path / "out", SearchConfig(), 1)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", port)
    with pytest.raises(InputError, match=f"chief .*127.0.0.1:{port}"):
        join(tmp_path, tmp_path / "out", SearchConfig(), 1)
    with pytest.raises(InputError, match="Received: workers=2"):
        join(tmp_path, tmp_path / "out", SearchConfig(), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variable", "count", "expected"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("2, 3", 2, ["2", "3"]),
        ("GPU-8f, GPU-9a", 2, ["GPU-8f", "GPU-9a"]),
        ("", 0, []),
    ],
)
def test_workers_get_the_gpus_that_the_user_allows(monkeypatch, variable, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus(count) == expected


class FakeProcess:
    exitcode = None


@pytest.fixture
def spawned(monkeypatch):
    """Processes of a pool by name of their log, in the order of their start."""
    processes = []

    def spawn(function, *arguments, log, environment=None) -> BaseProcess:
        processes.append((log.stem, environment or {}, FakeProcess()))
        return processes[-1][2]

    monkeypatch.setattr(tuning.pool, "spawn", spawn)
    monkeypatch.setattr(tuning.pool, "call", lambda function: 2)
    monkeypatch.setattr(tuning.pool, "stop", lambda processes, grace: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return processes


def test_pool_restarts_what_dies(spawned, tmp_path):
    pool = WorkerPool(tmp_path, tmp_path, SearchConfig(), workers=3)
    pool.start()
    names = ["chief", "worker0", "worker1", "worker2"]
    assert [name for name, *_ in spawned] == names
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for _, environment, _ in spawned]
    assert gpus == ["", "0", "1", "0"]
    assert pool.is_running()
    pool.processes["worker1"].exitcode = -9
    assert pool.is_running()
    assert [name for name, *_ in spawned[4:]] == ["worker1"]
    pool.processes["chief"].exitcode = 1
    assert pool.is_running()
    assert [name for name, *_ in spawned[5:]] == names
    pool.processes["chief"].exitcode = 0
    assert not pool.is_running()


@pytest.mark.usefixtures("spawned")
def test_pool_gives_up_after_deaths_in_a_row(tmp_path):
    pool = WorkerPool(tmp_path, tmp_path, SearchConfig(), workers=1)
    pool.start()
    for _ in range(MAX_RESTARTS - 1):
        pool.processes["search"].exitcode = 1
        assert pool.is_running()
    pool.processes["search"].exitcode = 1
    with pytest.raises(InputError, match="'search'"):
        pool.is_running()
    pool.deaths, pool.processes["search"].exitcode = 0, 0
    assert not pool.is_running()
