"""What stands between the network and the desk: the URL's token, the address and origin of the page, a body's size.

The token is the first part of every path, so no cookie is set and no other site can guess an address. The Host header
has to be one of the desk's own (a name that others make to point here is refused), and so has Origin wherever a
browser sends it. What is refused is told in one line, and nothing else is.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 1 << 20
MAX_PATH: Final = 200
"""Characters of a path behind the token: the page's own are shorter, and longer numbers are none."""
TOO_LARGE: Final = "larger than what the page sends"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """ASGI in front of an application, which sees paths without the token.

    Args:
        app: what is guarded.
        token: of the URL.
        origins: `http://HOST:PORT` of the desk itself, and of a proxy before it.
    """

    def __init__(self, app: ASGIApp, *, token: str, origins: Iterable[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._origins = frozenset(each.lower() for each in origins)
        self._hosts = frozenset(each.partition("://")[2] for each in self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refused = self._refused(scope)
        if refused is not None:
            await PlainTextResponse(refused[1], refused[0])(scope, receive, send)
            return
        token, slash, path = scope["path"][1:].partition("/")
        if not slash:  # what the page loads lies below it
            await RedirectResponse(f"/{token}/")(scope, receive, send)
            return
        inner = {**scope, "path": f"/{path}", "raw_path": None, "root_path": ""}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self._app(inner, _Bounded(receive), with_headers)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, "another address than this desk's own"
        for name, value in headers:
            if name == b"origin" and value.decode("latin-1").lower() not in self._origins:
                return 403, "another page than this desk's own"
            if name == b"sec-fetch-site" and value in (b"cross-site", b"same-site") and scope["method"] != "GET":
                return 403, "another page than this desk's own"
            if name == b"content-length" and (not value.isdigit() or int(value) > MAX_BODY_BYTES):
                return 413, TOO_LARGE
        token, _, path = scope["path"][1:].partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            return 403, "the address lacks the token that `grainmill annotate` printed"
        if len(path) > MAX_PATH:
            return 414, "a longer address than any of the page's"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "GET and POST only"
        return None


class TooLargeError(Exception):
    """A body is larger than it may be, whatever its header said."""


class _Bounded:
    """Receives at most `MAX_BODY_BYTES` of a body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = MAX_BODY_BYTES

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise TooLargeError
        return message
