"""Waiting for the servers of other processes."""

import socket
import time

__all__ = ["wait_for_server"]

CONNECT_TIMEOUT_S, RETRY_INTERVAL_S = 5.0, 0.2


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
