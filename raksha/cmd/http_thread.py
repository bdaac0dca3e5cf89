"""The REST API in a thread of a process that does other things as well.

gunicorn's threaded worker, as under `raksha-api`, so that what comes in is read by the same code with the same limits
and answered alike; but without the parent process that would fork it: a process with libvirt, a scheduler and their
threads cannot be forked. It listens before its thread begins, so that an address that cannot be used is told at the
start.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn import sock

from raksha.cmd.api import Server
from raksha.cmd.api_worker import JsonThreadWorker
from raksha.config_api import ApiSettings
from raksha.errors import SettingsWrong

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: seconds for requests that are under way when it is told to stop
_GRACE = 10
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 it is looked for, not bound


class HttpThread:
    """Answers from `start` to `stop`."""

    def __init__(self, application: WSGIApplication, settings: ApiSettings) -> None:
        """Listens. Raises `SettingsWrong` for an address or a certificate that cannot be used."""
        server = Server(application, settings)
        server.cfg.set("graceful_timeout", _GRACE)
        log = server.cfg.logger_class(server.cfg)
        try:
            if server.cfg.is_ssl:
                sock.ssl_context(server.cfg)
            (self._address,) = server.cfg.address
            self._listener = _listener(self._address, server.cfg, log)
        except (OSError, RuntimeError, ValueError) as error:
            raise SettingsWrong(detail=f"[api] bind, or its certificate: {settings.bind}: {error}") from error
        self._secure = bool(server.cfg.is_ssl)
        self._worker = _Worker(0, os.getppid(), [self._listener], server, 0, server.cfg, log)
        self.thread = threading.Thread(target=self._worker.init_process, name="api", daemon=True)

    @property
    def url(self) -> str:
        """By which this host reaches it; of a socket in the file system: its path."""
        if isinstance(self._address, str):
            return f"unix:{self._address}"
        host, port = self._listener.getsockname()[:2]
        host = _UNSPECIFIED.get(host, host)
        return f"{'https' if self._secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def exposed(self) -> bool:
        """Whether passwords can be read on a network."""
        return not (self._secure or isinstance(self._address, str) or _loopback(self._listener.getsockname()[0]))

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Take no new connections; what has come in is answered, within a few seconds."""
        self._worker.stop()
        self.thread.join()
        if isinstance(self._address, str):
            Path(self._address).unlink()


class _Worker(JsonThreadWorker):
    """Without the parts that belong to a process of its own."""

    def init_signals(self) -> None:
        """They are the process's."""

    def is_parent_alive(self) -> bool:
        """The parent is whoever started the service, and may go."""
        return True

    def stop(self) -> None:
        self.alive = False
        if self.booted:
            self.method_queue.defer(lambda: None)


def _listener(address: Any, settings: Any, log: Any) -> Any:
    """Raises `OSError`."""
    if isinstance(address, str):
        return sock.UnixSocket(address, settings, log)
    kind = sock.TCP6Socket if ":" in address[0] else sock.TCPSocket
    return kind(address, settings, log)


def _loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")
