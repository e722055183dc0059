"""A proxy in front of an object store that fails on purpose."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any


class FaultyStore(http.server.ThreadingHTTPServer):
    """Passes requests on to a store; some of them meet a fault, chosen by a seeded generator or by `choose`.

    A fault is an HTTP status (answered without doing what was asked), `slow`, `cut` (the connection ends without an
    answer, before anything is done, or in the middle of a body) or `lost` (done, not answered).

    Attributes:
        faults: fault -> share of requests.
        choose: from method and path of a request its fault or None; instead of `faults`.
        seen: method and path of every request.
        conditions: "kept", or "ignored" for a store that does not know `If-None-Match` and says nothing.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.store_port = port
        self.faults: dict[str, float] = {}
        self.choose: Callable[[str, str], str | None] | None = None
        self.seen: list[tuple[str, str]] = []
        self.conditions = "kept"
        self.met: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.ranges = 0
        self.generator = random.Random(5)
        self.lock = threading.Lock()

    def next_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            self.seen.append((method, path))
            if self.choose is not None:
                return self.choose(method, path)
            chance = self.generator.random()
            for name, share in self.faults.items():
                if chance < share:
                    self.met[name] += 1
                    return name
                chance -= share
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what this is about."""


CODES = {"400": b"InvalidArgument", "403": b"AccessDenied", "500": b"InternalError", "503": b"SlowDown"}
"""S3's own word for a status."""


class _Proxy(http.server.BaseHTTPRequestHandler):
    server: FaultyStore
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def _serve(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # answered by `handle_expect_100`
        body = self._body()
        self.server.requests[self.command] += 1
        self.server.ranges += "Range" in self.headers
        fault = self.server.next_fault(self.command, self.path)
        if fault == "slow":
            time.sleep(0.4)
        if fault == "cut" and self.command != "GET":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault is not None and fault.isdecimal():
            code = CODES[fault]
            self._answer(int(fault), {}, b"" if self.command == "HEAD" else b"<Error><Code>%s</Code></Error>" % code)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "host")}
        headers["Host"] = self.headers["Host"]
        if self.server.conditions == "ignored":
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        with self.server.lock if self.command == "PUT" else contextlib.nullcontext():
            # One put at a time: the store behind does not look and write in one step, a real one does.
            connection = http.client.HTTPConnection("127.0.0.1", self.server.store_port, timeout=60)
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
        if fault == "lost":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(answer.status, dict(answer.getheaders()), data, cut=fault == "cut")

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve
