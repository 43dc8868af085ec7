"""Stands in front of the whole server: who may ask, how much a request may hold, and what a page may load."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import ServingLimits
from .protocol import error_body

# The page sends all chosen files in one request. Gradio checks the size of each.
_UPLOAD = "/gradio_api/upload"

LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Gradio would fetch these and pass them on.
_FETCHES = re.compile(r"/(?:file|proxy)=\s*https?:", re.IGNORECASE)

# A browser that shows the page asks no other server for anything, and shows it in no frame.
_POLICY = (
    "default-src 'self' data: blob:",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src 'self' 'unsafe-inline'",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
)
_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An ASGI app around another one.

    - A request must name a host that the server answers to. A page of a stranger whose name leads to this machine (DNS
      rebinding) is refused.
    - A browser must send a request from the server's own page: `Origin` and `Sec-Fetch-Site` say so. Programs send
      neither.
    - A body that is larger than allowed is refused, by its length if it tells it, or as soon as it has come.

    Args:
        app: The app.
        names: The names that the server answers to. With `any_address`, also every IP address.
        any_address: Whether a request may name an IP address, as it must where others reach the server by it. A
            stranger's page always has a name.
        limits: What is accepted: the bytes of a request, and of an upload of the page.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], any_address: bool, limits: ServingLimits) -> None:
        self.app, self.any_address, self.limits = app, any_address, limits
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan; `serve` allows no web sockets
            await self.app(scope, receive, send)
            return
        refusal = self._refuse(Headers(scope=scope), scope["path"])
        if refusal is not None:
            await JSONResponse(error_body(*refusal), refusal[0])(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, self._count(receive, scope["path"]), send_with_headers)

    def _refuse(self, headers: Headers, path: str) -> tuple[int, str] | None:
        """Returns the status and the reason why a request is refused; None if it is not."""
        host = headers.get("host", "")
        if not self._answers_to(host):
            return 403, f"This server does not answer to the name {host[:100]!r}: --allow-host NAME adds one."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "Pages of other origins may not use this server."
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if site in ("cross-site", "same-site") and mode != "navigate":
            return 403, "Pages of other origins may not use this server."
        if _FETCHES.search(path):
            return 403, "This server fetches nothing."
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes(path):
            return 413, self._too_large(path)
        return None

    def _answers_to(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names:
                return True
            return self.any_address and bool(ipaddress.ip_address(name))
        except ValueError:  # a damaged header, or a name where an address is wanted
            return False

    def _most_bytes(self, path: str) -> int:
        return self.limits.max_upload if path == _UPLOAD else self.limits.max_body

    def _too_large(self, path: str) -> str:
        advice = "choose fewer pictures at a time" if path == _UPLOAD else "scale the picture down"
        return f"The request has more than {self._most_bytes(path):,} bytes, which is the limit: {advice}."

    def _count(self, receive: Receive, path: str) -> Receive:
        """Returns a function that passes on a request's body up to the limit."""
        size = 0

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most_bytes(path):
                raise HTTPException(413, self._too_large(path))
            return message

        return receive_some
