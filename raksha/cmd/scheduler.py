"""`raksha-scheduler`: fires schedules, starts runs, looks after those who no longer do. Exit codes: docs/cli.md."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raksha import config_database, config_scheduler
from raksha.config_scheduler import SchedulerSettings
from raksha.db import migrate
from raksha.db.session import Database, connect
from raksha.errors import RakshaError
from raksha.rpc import Bus
from raksha.scheduler.loop import Loop

_STOP = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    parser = argparse.ArgumentParser(prog="raksha-scheduler", description="The scheduler of the Raksha service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    options = parser.parse_args(arguments)
    try:
        settings = config_scheduler.load(options.config)
        database = connect(config_database.load(options.config))
        try:
            migrate.check(database)
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
            # before there are threads: none of them is interrupted, the first one looks for them
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
            _work(database, settings)
        finally:
            database.close()
    except RakshaError as error:
        print(f"raksha-scheduler: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def _work(database: Database, settings: SchedulerSettings) -> None:
    """Until SIGTERM or SIGINT, and then until the step under way is done."""
    bus = Bus(settings.transport_url) if settings.transport_url else None
    try:
        loop = Loop(database, settings, bus)
        thread = threading.Thread(target=loop.run, name="scheduler")
        thread.start()
        while thread.is_alive() and signal.sigtimedwait(_STOP, 1.0) is None:
            pass
        loop.stop()
        thread.join()
    finally:
        if bus is not None:
            bus.close()


if __name__ == "__main__":
    main()
