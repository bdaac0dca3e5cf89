"""An HTTP proxy on loopback in front of a real server, which spoils chosen requests: the vault that lies."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: of one hop only: not passed on
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """What happens to requests that `wanted` says yes to, `times` times."""

    #: a status (`"503"`), or: dropped, unheard, short, wrong_etag, cut, flipped, slow, chatty
    what: str
    wanted: Callable[[str, str], bool]
    times: int = 1
    #: how often it has happened
    happened: int = 0


class FaultyProxy:
    """Listens on `port`. `fault` is set by the test; `seen` has method and path of every request."""

    def __init__(self, target: int) -> None:
        self.fault: Fault | None = None
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self, "target": target})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def verdict(self, method: str, path: str) -> str:
        """What is to happen to this request, or ""."""
        with self._lock:
            self.seen.append((method, path))
            fault = self.fault
            if fault is None or fault.happened >= fault.times or not fault.wanted(method, path):
                return ""
            fault.happened += 1
            return fault.what


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy
    target: int

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _any(self) -> None:
        with suppress(OSError, http.client.HTTPException):
            self._serve()
            return
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _serve(self) -> None:
        body = self._body()
        what = self.proxy.verdict(self.command, self.path)
        if what.isdigit():
            return self._answer(int(what), {}, b"made to fail")
        if what == "dropped":
            return self._hang_up()
        if what == "slow":
            time.sleep(1.5)
        if what == "short":
            self._ask(body, cut=True)
            return self._hang_up()
        status, headers, answer = self._ask(body)
        if what == "unheard":
            return self._hang_up()
        if what == "wrong_etag":
            headers = {**headers, "Etag": "0" * 32}
        if what == "flipped" and answer:
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
        return self._answer(status, headers, answer, cut=what == "cut")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes, *, cut: bool = False) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body[: len(body) // 2] if cut else body)
            if cut:
                return 0, {}, b""
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def in_front_of(target: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
