"""`raksha-scheduler`: fires schedules, starts runs, looks after those who no longer do. Exit codes: docs/cli.md."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from raksha import config_api, config_check, config_database, config_notifications, config_scheduler, logs
from raksha.config_notifications import NotificationSettings
from raksha.config_scheduler import SchedulerSettings
from raksha.db import migrate
from raksha.db.session import Database, connect
from raksha.errors import RakshaError, SettingsWrong
from raksha.rpc import Bus, Notices
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.loop import Loop
from raksha.scheduler.notifying import Notifying

_STOP = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    parser = argparse.ArgumentParser(prog="raksha-scheduler", description="The scheduler of the Raksha service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    options = parser.parse_args(arguments)
    try:
        config_check.check(options.config)
        settings, notify = load(options.config), notifications(options.config)
        database = connect(config_database.load(options.config), notify=notify.enabled)
        try:
            migrate.check(database)
            logging.basicConfig(level=logging.INFO, handlers=[logs.named()])
            # before there are threads: none of them is interrupted, the first one looks for them
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
            _work(database, settings, vault_access(options.config), notify)
        finally:
            database.close()
    except RakshaError as error:
        print(f"raksha-scheduler: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def load(file: Path | None) -> SchedulerSettings:
    """With the limits of projects, which the API tells. Raises `SettingsWrong`."""
    return within(config_scheduler.load(file), config_api.load(file).limits)


def within(settings: SchedulerSettings, limits: config_api.Limits) -> SchedulerSettings:
    """What projects may have by the configuration."""
    return replace(settings, max_runs=limits.max_runs, max_stored_bytes=limits.max_stored_bytes)


def notifications(file: Path | None) -> NotificationSettings:
    """With the bus that they go to, if they go anywhere. Raises `SettingsWrong`."""
    found = config_notifications.load(file)
    url = found.transport_url or config_scheduler.load(file).transport_url
    if found.enabled and not url:
        raise SettingsWrong(detail="[notifications] enabled needs a transport_url, there or in [scheduler]")
    return replace(found, transport_url=url)


def _work(database: Database, settings: SchedulerSettings, access: Access, notify: NotificationSettings) -> None:
    """Until SIGTERM or SIGINT, and then until the step under way is done."""
    bus = Bus(settings.transport_url) if settings.transport_url else None
    end_metrics = None
    try:
        loop = Loop(database, settings, bus, access)
        if settings.metrics_port:
            end_metrics = serve_metrics(loop, settings)
        thread = threading.Thread(target=loop.run, name="scheduler")
        thread.start()
        with _notifying(database, settings, notify):
            while thread.is_alive() and signal.sigtimedwait(_STOP, 1.0) is None:
                pass
            loop.stop()
            thread.join()
    finally:
        if end_metrics is not None:
            end_metrics()
        if bus is not None:
            bus.close()


def _notifying(
    database: Database, settings: SchedulerSettings, notify: NotificationSettings
) -> AbstractContextManager[object]:
    """Others are told, if they are to be. Raises `BusFailed`."""
    if not notify.enabled:
        return nullcontext()
    # not closed: that would wait for a broker that stands still, and it ends with the process
    notices = Notices(notify.transport_url, notify.topics)
    return Notifying(database, notify, notices.send, settings.name, settings.interval)


def vault_access(file: Path | None) -> Access:
    """How vaults are opened: as `[trustee]` says, if there is such a section. Raises `SettingsWrong`."""
    found = file or (config_check.STANDARD_FILE if config_check.STANDARD_FILE.exists() else None)
    if not config_check.has_section(found, "trustee"):
        return ENVIRONMENT
    try:
        from raksha.openstack import compute, trusts
        from raksha.openstack.lent import LentLogin
    except ImportError as error:
        detail = f"[trustee] needs the package {error.name}: pip install 'raksha[keystone,openstack]'"
        raise SettingsWrong(detail=detail) from error

    def nova(lent: trusts.LentCloud, project_id: str, ids: frozenset[str] | None) -> dict[str, compute.ListedServer]:
        return compute.placed(LentLogin(lent.token, lent.endpoints, lent.verify), project_id, ids)

    return Access(trusts.load(found), nova)


def serve_metrics(loop: Loop, settings: SchedulerSettings) -> Callable[[], None]:
    """What ends it. Raises `SettingsWrong`."""
    try:
        return loop.metrics.serve(settings.metrics_address, settings.metrics_port)
    except OSError as error:
        raise SettingsWrong(detail=f"[scheduler] metrics_port {settings.metrics_port}: {error.strerror}") from error


if __name__ == "__main__":
    main()
