"""Who the processes are that train together, and the roll call before JAX brings them together."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import python

from brainslices.distributed.multihost import (
    ADDRESSES,
    COUNT,
    INDEX,
    TIMEOUT,
    ProcessGroup,
    _call_roll,
)
from brainslices.errors import InputError


def told(address="host:1234", count="2", index="0", **others):
    """Environment variables; those that are None are left out."""
    given = {ADDRESSES: address, COUNT: count, INDEX: index, **others}
    return {name: value for name, value in given.items() if value is not None}


def test_environment_without_a_cluster():
    assert ProcessGroup.from_environment({"PATH": "/bin"}) is None


@pytest.mark.parametrize("address", ["node-1:1234", "node-1:1234,node-2:1234"])
def test_cluster_of_the_environment(address):
    cluster = ProcessGroup.from_environment(told(address, "4", "3", **{TIMEOUT: "7.5"}))
    assert cluster == ProcessGroup("node-1", 1234, count=4, index=3, timeout=7.5)
    assert cluster.address == "node-1:1234"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (told(index=None), f"{INDEX} must be set too"),
        (told(address=None, count=None), f"{ADDRESSES} and {COUNT} must be set"),
        (told(address=""), f"{ADDRESSES} must be set"),
        (
            told("node-1"),
            "must be host:port of the first process, with a port .* Received: 'node-1'",
        ),
        (told("node-1:http"), "must be host:port"),
        (told(":1234"), "must be host:port"),
        (told("node-1:0"), "with a port from 1 to 65535. Received: 'node-1:0'"),
        (told("node-1:65536"), "with a port from 1 to 65535"),
        (told(count="two"), f"{COUNT} must be a whole number, not negative. Received: 'two'"),
        (told(index="-1"), f"{INDEX} must be a whole number, not negative. Received: '-1'"),
        (told(index="2"), f"{INDEX} must be under {COUNT}, which is 2"),
        (told(count="0"), f"{COUNT} must be at least 1"),
        (told(**{TIMEOUT: "soon"}), f"{TIMEOUT} must be a number of seconds above 0"),
        (told(**{TIMEOUT: "0"}), f"{TIMEOUT} must be a number of seconds above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_environment_that_makes_no_sense(environment, words):
    with pytest.raises(InputError, match=words):
        ProcessGroup.from_environment(environment)


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def roll(port, indices, count, timeout=20.0, counts=None):
    """What each process hears, called with these indices at the same time; "" where all is well."""

    def come(number):
        of = count if counts is None else counts[number]
        try:
            _call_roll(ProcessGroup("127.0.0.1", port, of, indices[number], timeout))
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(indices)) as pool:
        return list(pool.map(come, range(len(indices))))


def test_everyone_comes(port):
    assert roll(port, [2, 0, 3, 1], 4) == [""] * 4


def test_one_does_not_come(port):
    heard = roll(port, [0, 2], 4, timeout=3.0)
    assert heard[0] == heard[1]
    assert f"Process 1, 3 of 4 did not come to 127.0.0.1:{port} within 3 s" in heard[0]


def test_the_first_does_not_come(port):
    (heard,) = roll(port, [1], 2, timeout=1.0)
    assert f"Process 0 could not be reached at 127.0.0.1:{port} within 1 s" in heard


def test_index_given_twice(port):
    heard = roll(port, [0, 1, 1], 3, timeout=5.0)
    assert all(f"Two processes came as {INDEX}=1" in text for text in heard)


def test_first_index_given_twice(port):
    heard = roll(port, [0, 0], 2, timeout=2.0)
    assert sum("cannot be used" in text for text in heard) == 1
    assert sum("did not come" in text for text in heard) == 1


def test_counts_that_differ(port):
    heard = roll(port, [0, 1], 2, counts=[2, 3])
    assert heard[0] == heard[1]
    assert "Process 1 was told of 3 processes" in heard[0]


def test_strangers_at_the_port_are_passed_over(port):
    def knock():
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as end:
                    end.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return
            except OSError:
                pass

    with ThreadPoolExecutor(1) as pool:
        knocking = pool.submit(knock)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(roll, port, [0], 2)
            knocking.result()
            assert roll(port, [1], 2) == [""]
            assert first.result() == [""]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train_vqvae", "train_pixelcnn"])
def test_command_whose_peer_never_comes(stage, port, phantom_archive, linked, tmp_path):
    """One message with the address, status 2, and no run folder."""
    own = {
        "train_vqvae": ["--data", phantom_archive.path],
        "train_pixelcnn": ["--vqvae", linked[1].path],
    }
    words = [f"scripts/{stage}.py", *own[stage], "--run", tmp_path / "run"]
    environment = told(f"127.0.0.1:{port}", **{TIMEOUT: "1"})
    ran = python(*words, **environment, KERAS_BACKEND="jax")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: Process 1 of 2 did not come to 127.0.0.1:")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_need_jax(phantom_archive, tmp_path, port):
    words = ["scripts/train_vqvae.py", "--data", phantom_archive.path, "--run", tmp_path / "run"]
    ran = python(*words, **told(f"127.0.0.1:{port}"), KERAS_BACKEND="tensorflow")
    assert ran.returncode == 2
    assert "several processes train together under JAX alone" in ran.stderr
