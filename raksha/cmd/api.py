"""`raksha-api`: the REST API under gunicorn. Exit codes: docs/cli.md.

Another WSGI server finds the application in `raksha.cmd.api_wsgi`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import ParseException

from raksha import config_api, config_database
from raksha.api.app import create_app
from raksha.api.http_basic import HttpBasic
from raksha.api.request_id import RequestIdFilter
from raksha.api.services import Services
from raksha.config_api import ApiSettings
from raksha.db import migrate
from raksha.db.rows import clock
from raksha.db.session import Database, connect
from raksha.errors import RakshaError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

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
        settings = config_api.load(options.config)
        database = connect(config_database.load(options.config))
        application = make_application(settings, database, (ParseException,))
        log_to_stderr()
        Server(application, settings).run()
    except RakshaError as error:
        print(f"raksha-api: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def make_application(
    settings: ApiSettings, database: Database, unreadable: tuple[type[Exception], ...] = ()
) -> WSGIApplication:
    """The WSGI application, on a database that is there. `unreadable`: what the server raises for a broken body.

    Raises `SettingsWrong`, `SchemaWrong`, `DatabaseUnavailable`.
    """
    authenticator = HttpBasic(settings.users_file)
    migrate.check(database)
    # gunicorn forks now: its processes must not share a connection
    database.close()
    checks = {"database": partial(_answers, database)}
    return create_app(settings, Services(database, authenticator, checks), unreadable=unreadable)


def _answers(database: Database) -> None:
    """Raises `DatabaseUnavailable`."""
    with database.reading() as session:
        clock(session)


def log_to_stderr() -> None:
    """Lines with the id of their request."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s %(global_request_id)s] %(message)s")
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
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        return self._app


if __name__ == "__main__":
    main()
