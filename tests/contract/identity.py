"""A stand-in for Keystone v3: it answers the requests that keystoneauth makes, with tokens of the real Swift.

Keystone itself would be another service with a database of its own; what is under test is what we send and how we
use the catalog. Also a server that redirects, to see who follows.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.bed.swift import SwiftBed


class Seen:
    """What a server was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, _, body in self.requests]


@contextmanager
def serving(answer: Any, certificate: Path | None = None) -> Iterator[tuple[str, Seen]]:
    """`answer(method, path, headers, body)` gives status, headers and body. With a certificate (and key) over TLS."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.requests.append((self.command, self.path, dict(self.headers), body))
            status, headers, content = answer(self.command, self.path, dict(self.headers), body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _reply

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def keystone(bed: SwiftBed, password: str, tokens: Iterator[str]) -> Any:
    """The answers of a Keystone whose catalog has the account of `bed` as the public endpoint of region `north`."""

    def answer(_method: str, path: str, _headers: dict[str, str], body: bytes) -> Any:
        if path != "/v3/auth/tokens":
            return 404, {}, b"{}"
        if password.encode() not in body:
            return 401, {}, json.dumps({"error": {"code": 401, "message": "The request needs a login."}}).encode()
        return 201, {"X-Subject-Token": next(tokens)}, json.dumps({"token": _token(bed)}).encode()

    return answer


def _token(bed: SwiftBed) -> dict[str, Any]:
    now = datetime.now(UTC)

    def endpoint(interface: str, region: str, url: str) -> dict[str, str]:
        return {"id": interface + region, "interface": interface, "region": region, "region_id": region, "url": url}

    nowhere = "http://127.0.0.1:9/v1/AUTH_test"
    return {
        "methods": ["password"],
        "issued_at": now.strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "expires_at": (now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "user": {"id": "u", "name": "ann", "domain": {"id": "default", "name": "Default"}},
        "project": {"id": "p", "name": "lab", "domain": {"id": "default", "name": "Default"}},
        "roles": [],
        "catalog": [
            {
                "id": "s",
                "type": "object-store",
                "name": "swift",
                "endpoints": [
                    endpoint("public", "south", nowhere),
                    endpoint("internal", "north", nowhere),
                    endpoint("public", "north", bed.storage_url),
                    endpoint("internal", "south", bed.storage_url),
                ],
            }
        ],
    }
