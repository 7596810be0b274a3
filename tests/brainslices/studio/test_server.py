import socket

import pytest

pytest.importorskip("gradio", reason='needs Gradio: pip install --editable ".[studio]"')

from starlette.datastructures import Headers

from brainslices.errors import InputError
from brainslices.studio.server import (
    LOOPBACK_NAMES,
    OriginGuard,
    check_host,
    check_port,
    is_loopback,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_loopback_needs_no_password(host, capsys):
    assert is_loopback(host)
    check_host(host, None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "scanner.example"])
def test_other_hosts_need_a_password_and_warn(host, caplog):
    with pytest.raises(InputError, match=f"`host`.*Received: host={host}.*--password"):
        check_host(host, None)
    check_host(host, "secret")
    assert "other machines can reach" in caplog.text


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:1"}, False),
        ({"host": "localhost:7860", "origin": "null"}, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, False),
        ({"host": "localhost:7860", "sec-fetch-site": "same-site"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_only_requests_of_the_own_page_are_allowed(headers, is_allowed):
    assert OriginGuard(None, LOOPBACK_NAMES).is_allowed(Headers(headers)) is is_allowed


def test_with_a_public_host_any_name_is_allowed_but_no_other_origin():
    guard = OriginGuard(None)
    assert guard.is_allowed(Headers({"host": "lab:1", "origin": "http://lab:1"}))
    assert not guard.is_allowed(Headers({"host": "lab:1", "origin": "http://evil.example"}))


def test_port_in_use_is_refused_before_the_models_are_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"`port` {port} .*Give another --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
