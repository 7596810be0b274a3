"""The environment of processes that train together, and their start-up."""

import socket
import threading
import time

import pytest
from helpers import SCRIPT, python, run_command

from brainslices.distributed.multihost import (
    ADDRESSES,
    COUNT,
    INDEX,
    TIMEOUT,
    ProcessGroup,
    _check_port_is_free,
    _wait_for_coordinator,
)
from brainslices.errors import InputError


def variables(address="host:1234", count="2", index="0", **others):
    """Environment variables of a process; those that are None are left out."""
    values = {ADDRESSES: address, COUNT: count, INDEX: index, **others}
    return {name: value for name, value in values.items() if value is not None}


def test_environment_without_a_group():
    assert ProcessGroup.from_environment({"PATH": "/bin"}) is None


@pytest.mark.parametrize("address", ["node-1:1234", "node-1:1234,node-2:1234"])
def test_group_of_the_environment(address):
    group = ProcessGroup.from_environment(variables(address, "4", "3", **{TIMEOUT: "7.5"}))
    assert group == ProcessGroup("node-1", 1234, count=4, index=3, timeout=7.5)
    assert group.address == "node-1:1234"


@pytest.mark.parametrize(
    ("environment", "name", "received"),
    [
        (variables(index=None), INDEX, "must be set"),
        (variables(address=None, count=None), f"{ADDRESSES} and {COUNT}", "must be set"),
        (variables(address=""), ADDRESSES, "must be set"),
        *(
            (variables(address), ADDRESSES, f"Received: {address!r}")
            for address in ("node-1", "node-1:http", ":1234", "node-1:0", "node-1:65536")
        ),
        (variables(count="two"), COUNT, "Received: 'two'"),
        (variables(count="0"), COUNT, "Received: '0'"),
        (variables(index="-1"), INDEX, "Received: '-1'"),
        (variables(index="2"), INDEX, "Received: '2'"),
        (variables(**{TIMEOUT: "soon"}), TIMEOUT, "Received: 'soon'"),
        (variables(**{TIMEOUT: "0"}), TIMEOUT, "Received: '0'"),
        (variables(**{TIMEOUT: "inf"}), TIMEOUT, "Received: 'inf'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_environment(environment, name, received):
    with pytest.raises(InputError) as caught:
        ProcessGroup.from_environment(environment)
    assert name in str(caught.value)
    assert received in str(caught.value)


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def test_port_in_use_is_refused(port):
    group = ProcessGroup("127.0.0.1", port, count=2, index=0)
    _check_port_is_free(group)
    with socket.create_server(("", port)), pytest.raises(InputError, match=f"Port {port}"):
        _check_port_is_free(group)


def test_process_waits_for_the_coordinator(port):
    group = ProcessGroup("127.0.0.1", port, count=2, index=1, timeout=20.0)
    waiting = threading.Thread(target=_wait_for_coordinator, args=[group], daemon=True)
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    with socket.create_server(("", port)):
        waiting.join(timeout=20)
    assert not waiting.is_alive()


def test_absent_coordinator_is_named(port):
    group = ProcessGroup("127.0.0.1", port, count=2, index=1, timeout=0.3)
    with pytest.raises(InputError, match=f"127.0.0.1:{port} within 0.3 s"):
        _wait_for_coordinator(group)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["train_vqvae", pytest.param("train_pixelcnn", marks=pytest.mark.long)]
)
def test_command_with_a_missing_peer(stage, port, phantom_archive, request, tmp_path):
    """One message with the address, status 2, and no run folder."""
    if stage == "train_vqvae":
        inputs = ["--data", phantom_archive.path]
    else:
        inputs = ["--vqvae", request.getfixturevalue("linked")[1].path]
    arguments = [f"scripts/{stage}.py", *inputs, "--run", tmp_path / "run"]
    environment = variables(f"127.0.0.1:{port}", **{TIMEOUT: "1"})
    ran = python(*arguments, **environment, KERAS_BACKEND="jax")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert f"127.0.0.1:{port}" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_several_processes_need_jax(phantom_archive, tmp_path, port, monkeypatch, capsys):
    for name, value in variables(f"127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    words = ["--data", phantom_archive.path, "--run", tmp_path / "run"]
    assert run_command(SCRIPT, *words) == 2
    assert "KERAS_BACKEND=jax" in capsys.readouterr().err
