"""Sends the notifications that wait in the database, in a thread of its own: a bus that is slow holds up nobody.

It looks every few seconds. Any number of schedulers may: one of them sends at a time (`raksha.db.outbox`). While the
bus is away everything waits, at most as long as the configuration says, and is looked after less often; that is logged
once, as is its return. At the end of the process nobody waits for a bus: what was under way is sent again by the next.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial

from raksha.config_notifications import NotificationSettings
from raksha.db import outbox
from raksha.db.columns import SECOND
from raksha.db.models import Notification
from raksha.db.session import Database
from raksha.errors import BusUnavailable, RakshaError
from raksha.notifications import Event
from raksha.rpc import Notice

_log = logging.getLogger(__name__)

#: notifications sent under one lease, and its seconds: what takes longer may be sent twice
_BATCH, _LEASE = 100, 60.0
#: seconds between two looks for what has waited too long
_DROP = 600.0
#: times the interval at most between two looks, while the bus is away
_RARELY = 12
#: seconds that the end of the process waits for what is under way
_GRACE = 2.0

Send = Callable[[Notice], None]


class Notifying:
    """A context manager: it sends meanwhile. `send` raises `BusUnavailable`."""

    def __init__(
        self, database: Database, settings: NotificationSettings, send: Send, name: str, interval: float = 5.0
    ) -> None:
        self._database = database
        self._settings = settings
        self._send = send
        self._publisher = f"raksha.{name}"
        self._interval = interval
        self._me = str(uuid.uuid4())
        #: looks since the bus was seen last
        self._away = 0
        self._database_away = False
        self._dropped_at: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notifying", daemon=True)

    def __enter__(self) -> Notifying:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_GRACE)

    def send_all(self) -> int:
        """What waits, as far as the bus takes it. How many.

        Raises `DatabaseUnavailable`, `DatabaseBusy`, `CommitUnknown`: what is not known to be removed is sent again.
        """
        self._drop()
        count = 0
        while not self._over.is_set():
            with self._database.reading() as session:
                if not outbox.waits(session):
                    break
            batch = self._database.run(partial(outbox.take, sender=self._me, lease=_LEASE, limit=_BATCH))
            if not batch:
                break
            sent = self._send_some(batch)
            self._database.run(partial(outbox.sent, numbers=sent, sender=self._me))
            count += len(sent)
            if len(sent) < len(batch):
                break
        return count

    def _send_some(self, batch: list[Notification]) -> list[int]:
        """Numbers of those that the bus has: the first ones."""
        sent: list[int] = []
        until = time.monotonic() + _LEASE / 2
        for row in batch:
            if self._over.is_set() or time.monotonic() > until:
                break
            try:
                self._send(self._notice(row))
            except BusUnavailable as error:
                if self._away == 0:
                    _log.warning("notifications wait: %s", error.fields["detail"], extra={"action": "notify"})
                self._away += 1
                break
            if self._away > 0:
                _log.info("notifications are sent again", extra={"action": "notify"})
            self._away = 0
            sent.append(row.number)
        return sent

    def _notice(self, row: Notification) -> Notice:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.created_at // SECOND))
        return Notice(
            message_id=row.message_id,
            publisher_id=self._publisher,
            event_type=row.event,
            priority=Event(row.event).priority.upper(),
            payload=row.payload,
            timestamp=f"{at}.{row.created_at % SECOND:06}",
        )

    def _drop(self) -> None:
        if self._dropped_at is not None and time.monotonic() - self._dropped_at < _DROP:
            return
        self._dropped_at = time.monotonic()
        if (count := self._database.run(partial(outbox.drop, older_than=self._settings.keep))) > 0:
            lost = "%d notifications could not be sent in time, and are dropped"
            _log.error(lost, count, extra={"action": "notify"})

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                self.send_all()
                self._database_away = False
            except RakshaError as error:
                if not self._database_away:
                    _log.error("notifications wait: %s", error, extra={"action": "notify"})
                self._database_away = True
            except Exception:  # what nobody thought of must not end it for all that follow
                _log.exception("notifications failed", extra={"action": "notify"})
            self._over.wait(self._interval * min(_RARELY, 2**self._away))
