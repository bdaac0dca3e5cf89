"""`raksha-api`: the REST API under gunicorn. Exit codes: docs/cli.md.

Another WSGI server finds the application in `raksha.cmd.api_wsgi`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import ParseException
from msgspec.structs import replace

from raksha import config_api, config_check, config_database, config_notifications, config_scheduler
from raksha.api import metrics
from raksha.api.app import create_app
from raksha.api.auth import Authenticator
from raksha.api.delegation import Grantor
from raksha.api.http_basic import HttpBasic
from raksha.api.request_id import RequestIdFilter
from raksha.api.services import Services
from raksha.api.waker import Waker
from raksha.config_api import STANDARD_FILE, ApiSettings
from raksha.config_scheduler import SchedulerSettings
from raksha.db import migrate
from raksha.db.rows import clock
from raksha.db.session import Database, connect
from raksha.errors import RakshaError
from raksha.logs import OneLine
from raksha.rpc import Bus

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from raksha.openstack.compute import Servers

#: seconds that a request may take to come in or to be answered once the process was told to stop
_GRACE = 30
#: bytes of one header line and of the request line; what is longer is refused before it reaches the application
_LONGEST_LINE = 8190


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    parser = argparse.ArgumentParser(prog="raksha-api", description="The REST API of the Raksha service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    options = parser.parse_args(arguments)
    try:
        settings, scheduling = load(options.config)
        notify = config_notifications.load(options.config).enabled
        database = connect(config_database.load(options.config), notify=notify)
        with _shared_metrics(settings):
            who, grantor, servers = authenticator(settings, options.config)
            wake = waker(scheduling)
            application = make_application(settings, database, who, (ParseException,), wake, grantor, servers)
            log_to_stderr()
            Server(application, settings).run()
    except RakshaError as error:
        print(f"raksha-api: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def load(file: Path | None = None) -> tuple[ApiSettings, SchedulerSettings]:
    """Both sections: the API tells what schedulers will do. Raises `SettingsWrong`."""
    config_check.check(file)
    settings, scheduling = config_api.load(file), config_scheduler.load(file)
    shared = ("agent_timeout", "keep_failed", "max_runs_per_project", "unowned_vms_project", "libvirt_vms")
    return replace(settings, **{name: getattr(scheduling, name) for name in shared}), scheduling


def waker(scheduling: SchedulerSettings) -> Callable[[], object] | None:
    """What tells schedulers to look; None: there is no bus. Raises `BusFailed`."""
    return Waker(Bus(scheduling.transport_url)) if scheduling.transport_url else None


@contextmanager
def _shared_metrics(settings: ApiSettings) -> Iterator[None]:
    """Several processes count in files of one directory, so that each can answer for all."""
    if settings.workers == 1:
        yield
        return
    with TemporaryDirectory(prefix="raksha-api-metrics-") as directory:
        metrics.share(directory)
        yield


def authenticator(settings: ApiSettings, file: Path | None) -> tuple[Authenticator, Grantor | None, Servers | None]:
    """Who says who a caller is; who makes trusts, and who asks Nova, if anybody. Raises `SettingsWrong`."""
    if settings.auth_strategy == "keystone":
        # only here: it brings in a lot
        from raksha.api import keystone

        return keystone.load(file or (STANDARD_FILE if STANDARD_FILE.exists() else None))
    return HttpBasic(settings.users_file), None, None


def make_application(
    settings: ApiSettings,
    database: Database,
    authenticator: Authenticator,
    unreadable: tuple[type[Exception], ...] = (),
    wake: Callable[[], object] | None = None,
    grantor: Grantor | None = None,
    servers: Servers | None = None,
) -> WSGIApplication:
    """The WSGI application, on a database that is there. `unreadable`: what the server raises for a broken body;
    `wake`: tells schedulers to look; `grantor`: makes trusts for jobs; `servers`: asks Nova with tokens of callers.

    Raises `SchemaWrong`, `DatabaseUnavailable`.
    """
    migrate.check(database)
    # gunicorn forks now: its processes must not share a connection
    database.close()
    checks = {"database": partial(_answers, database)}
    services = Services(database, authenticator, checks, wake or _nobody, grantor, servers)
    return create_app(settings, services, unreadable=unreadable)


def _nobody() -> None:
    """There is no bus: schedulers look by themselves."""


def _answers(database: Database) -> None:
    """Raises `DatabaseUnavailable`."""
    with database.reading() as session:
        clock(session)


def log_to_stderr() -> None:
    """Lines with the id of their request."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(
        OneLine("%(asctime)s %(levelname)s %(name)s [%(request_id)s %(global_request_id)s] %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings: nothing is read from its own files or environment."""

    def __init__(self, app: WSGIApplication, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings
        super().__init__(prog="raksha-api")

    def load_config(self) -> None:
        settings = self._settings
        values: dict[str, Any] = {
            "bind": settings.bind,
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": "raksha.cmd.api_worker.JsonThreadWorker",
            "graceful_timeout": _GRACE,
            "limit_request_line": _LONGEST_LINE,
            "limit_request_field_size": _LONGEST_LINE,
            "certfile": str(settings.tls_certificate) if settings.tls_certificate else None,
            "keyfile": str(settings.tls_key) if settings.tls_key else None,
            "child_exit": lambda _server, worker: metrics.left(worker.pid),
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        return self._app


if __name__ == "__main__":
    main()
