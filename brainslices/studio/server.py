"""The server of the browser app: access, login and refused requests."""

import ipaddress
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from brainslices.distributed.ports import check_can_listen
from brainslices.errors import InputError
from brainslices.studio.app import CSS, JS, theme
from brainslices.studio.uploads import MAX_BYTES

__all__ = ["USER", "OriginGuard", "check_host", "check_port", "is_loopback", "serve"]

logger = logging.getLogger(__name__)
USER = "studio"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
NO_API_PAGES = {"docs_url": None, "redoc_url": None, "openapi_url": None}
LAUNCH: dict[str, Any] = {
    "prevent_thread_lock": True,
    "quiet": True,
    "show_error": True,
    "share": False,
    "allowed_paths": [],
    "max_file_size": MAX_BYTES,
    "strict_cors": True,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "run_history": False,
    "footer_links": [],
}


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, password: str | None) -> None:
    """Check that others need a password, and warn that they may connect.

    Raises:
        InputError: if `host` is not loopback and there is no password.
    """
    if is_loopback(host):
        return
    if not password:
        raise InputError(
            "`host` other than 127.0.0.1 lets others in, so it needs a password. Received: "
            f"host={host}. Add --password, or leave --host out."
        )
    logger.warning(
        f"other machines can reach {host}, unencrypted. Whoever has the password can use "
        "this app and see what it shows."
    )


def check_port(host: str, port: int) -> None:
    """Check that the server can listen, before the models are loaded.

    Raises:
        InputError: if another program uses the port, or the address is not one of this machine.
    """
    try:
        check_can_listen(host, port)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"The studio cannot listen at `host` {host}, `port` {port} ({error}). Give another "
            "--port, or an address of this machine as --host."
        ) from error


class OriginGuard:
    """Refuse requests of other pages, and requests by other names of this machine.

    Args:
        app: the application that allowed requests reach.
        hosts: names by which a browser may call the server; empty for any.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = ()):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] in ("http", "websocket") and not self.is_allowed(Headers(scope=scope)):
            await PlainTextResponse("Requests from another origin are refused.", 403)(
                scope, receive, send
            )
            return
        await self.app(scope, receive, send)

    def is_allowed(self, headers: Headers) -> bool:
        """Return whether the headers are those of this app's own page, or of no page."""
        host = headers.get("host", "")
        # Another name may be one that an attacker's name server points to this machine.
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return False
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        is_navigation = headers.get("sec-fetch-mode") == "navigate"
        site = headers.get("sec-fetch-site", "none")
        return site in ("none", "same-origin") or is_navigation


def serve(
    build: Callable[[], gr.Blocks],
    host: str,
    port: int,
    password: str | None,
    open_browser: bool,
    ready: Callable[[str], None],
) -> None:
    """Serve a page until interrupted.

    Args:
        build: lays out the page.
        host: address to bind.
        port: port to bind.
        password: what visitors log in with, or None.
        open_browser: open the page in the user's browser.
        ready: called with the page's address when it can be opened.
    """
    with tempfile.TemporaryDirectory(prefix="brainslices-studio-") as folder:
        # Uploads and downloads are here, and end with the server.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        page = build()
        guard = Middleware(OriginGuard, hosts=(*LOOPBACK_NAMES, host) if is_loopback(host) else ())
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # an IPv6 address
            server_port=port,
            auth=_check_login(password) if password else None,
            auth_message=f"The user name is {USER}.",
            inbrowser=open_browser,
            app_kwargs={**NO_API_PAGES, "middleware": [guard]},
            theme=theme(),
            css=CSS,
            js=JS,
            **LAUNCH,
        )
        try:
            ready(address)
            threading.Event().wait()
        finally:
            page.close()


def _check_login(password):
    def check(user, given):
        return user == USER and secrets.compare_digest(given.encode(), password.encode())

    return check
