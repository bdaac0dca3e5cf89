"""A TCP relay on loopback that breaks connections on command: the bad network that loopback is not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes bytes on between its own `port` and another one."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._left: int | None = None
        self._sockets: list[socket.socket] = []
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        """Once `count` more bytes have come from the target, break the connection that carries the next one."""
        with self._lock:
            self._left = count

    def close(self) -> None:
        self._listener.close()
        for each in self._sockets:
            _hang_up(each)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            threading.Thread(target=self._pass_on, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(far, near, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                data, cut = self._spend(data) if counted else (data, False)
                target.sendall(data)
                if cut:
                    break
        _hang_up(source)
        _hang_up(target)

    def _spend(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self._left is None:
                return data, False
            if len(data) <= self._left:
                self._left -= len(data)
                return data, False
            data, self._left = data[: self._left], None
            self.cuts += 1
            return data, True


def _hang_up(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextlib.contextmanager
def relayed(target: int) -> Iterator[Relay]:
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()
