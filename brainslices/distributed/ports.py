"""Ports: whether this process can listen at one, and waiting for the server of another."""

import socket
import time

__all__ = ["check_can_listen", "wait_for_server"]

CONNECT_TIMEOUT_S, RETRY_INTERVAL_S = 5.0, 0.2


def check_can_listen(host: str, port: int) -> None:
    """Check that a server of this process could listen at a port.

    Args:
        host: host name or IP address of this machine; empty for all of its IPv4 addresses.
        port: the port.

    Raises:
        OSError: if another server listens there, or the address is not one of this machine.
        OverflowError: if the port is not from 0 to 65535.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Reuses the address on POSIX: old connections of a server that has ended do not matter.
    socket.create_server((host, port), family=family).close()


def wait_for_server(host: str, port: int, timeout: float) -> None:
    """Wait until a server accepts connections; it may not have started yet.

    Args:
        host: its host name or IP address.
        port: its port.
        timeout: seconds to wait.

    Raises:
        OSError: if there is no connection in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_INTERVAL_S)
