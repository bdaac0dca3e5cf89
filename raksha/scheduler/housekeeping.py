"""Rows that have done their work: answers to requests that nobody repeats any more, processes that are gone."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from raksha.config_scheduler import SchedulerSettings
from raksha.db import idempotency, services
from raksha.db.session import Database
from raksha.errors import RowNotFound, StillNeeded

#: seconds that a POST may be repeated
REPEATABLE = 86400.0
_LOOKED_AT = 1000


class Forgotten(Struct, frozen=True):
    """What one round removed."""

    keys: int
    services: int


def tidy(database: Database, settings: SchedulerSettings) -> Forgotten:
    """One round."""
    keys = database.run(partial(idempotency.forget, older_than=REPEATABLE))
    with database.reading() as session:
        silent = services.silent(session, settings.forget_services, _LOOKED_AT)
    gone = 0
    for service in silent:
        try:
            database.run(partial(services.remove, id=service.id, silent_for=settings.forget_services))
        except (RowNotFound, StillNeeded):  # it is back
            continue
        gone += 1
    return Forgotten(keys, gone)
