"""One claimed task in this process: under which epoch, until when, how far, and whether it is to end.

A task keeps its `Work` for as long as its thread lives. When its lease ended while the bus was away, and a new claim
gives it back, it goes on under the new epoch: nothing that it has open or stored is lost.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from raksha.agent.progress import TaskProgress
from raksha.errors import Interrupted
from raksha.tasks import (
    BackupOrder,
    BootOrder,
    Claimed,
    CloudAccess,
    Order,
    Renewed,
    Report,
    RestoreOrder,
    VerifyOrder,
)
from raksha.vault.credentials import LentCredentials, TokenCredentials, given_token

if TYPE_CHECKING:
    from raksha.openstack.lent import LentLogin

_log = logging.getLogger(__name__)

#: kinds that count against the capacity of a host; the others make room
HEAVY = (BackupOrder, RestoreOrder, VerifyOrder, BootOrder)
#: seconds between two looks at a lease that is over
_POLL = 0.1


class End(StrEnum):
    """Why work ends before it is done."""

    #: somebody wants it no more
    CANCELLED = "cancelled"
    #: this process is told to stop; it is handed back
    STOPPED = "stopped"
    #: somebody else has it, or has ended it: what was done is given up, and nothing said
    STALE = "stale"


class Work:
    """For any thread."""

    def __init__(self, claimed: Claimed, asked_at: float) -> None:
        """`asked_at`: by the monotonic clock, before the claim was asked for: the lease is not longer than it seems."""
        #: under its first epoch in this process; what it stores is named by that
        self.claimed = claimed
        self.progress = TaskProgress()
        #: set when it is to end, for whatever reason; pipelines and restores look at it
        self.over = threading.Event()
        self.why: End | None = None
        #: what a restore is about to make or write to
        self.made: tuple[dict[str, Any], ...] = ()
        self._lock = threading.Lock()
        self._epoch = claimed.epoch
        self._number = 0
        self._asked_at = asked_at
        self._lease = claimed.lease_seconds
        #: what opens the vault, if not this host's environment; renewed with the lease
        self.lent = _lent(claimed)
        #: what acts in the project's cloud; renewed likewise
        self.cloud = _login(claimed.cloud)

    @property
    def task_id(self) -> str:
        return self.claimed.task_id

    @property
    def order(self) -> Order:
        return self.claimed.order

    @property
    def heavy(self) -> bool:
        return isinstance(self.order, HEAVY)

    @property
    def epoch(self) -> int:
        with self._lock:
            return self._epoch

    # -- the lease ----------------------------------------------------------------------------------

    def adopt(self, claimed: Claimed, asked_at: float) -> None:
        """A new claim of the same task: it goes on."""
        with self._lock:
            self._epoch, self._number = claimed.epoch, 0
            self._asked_at, self._lease = asked_at, claimed.lease_seconds
        self._open_with(None if claimed.vault is None else claimed.vault.credentials, claimed.cloud)

    def renewed(self, said: Renewed, asked_at: float) -> None:
        with self._lock:
            self._asked_at, self._lease = asked_at, said.lease_seconds
        self._open_with(said.credentials, said.cloud)

    def _open_with(self, credentials: Mapping[str, str] | None, cloud: CloudAccess | None) -> None:
        if self.lent is not None and credentials is not None:
            self.lent.renew(_token(credentials))
        if self.cloud is not None and cloud is not None:
            self.cloud.renew(cloud.token)

    def renew_at(self) -> float:
        """By the monotonic clock: twice more may fail before the lease is over."""
        with self._lock:
            return self._asked_at + self._lease / 3

    def has_lease(self) -> bool:
        with self._lock:
            return time.monotonic() < self._asked_at + self._lease

    def wait_for_lease(self) -> None:
        """Before a step that changes a chain: the task must be known to be ours. Raises `Interrupted`."""
        while not self.has_lease():
            if self.over.wait(_POLL):
                raise Interrupted()
        self.check()

    # -- its end ------------------------------------------------------------------------------------

    def end(self, why: End) -> None:
        """Ask for the end. What was said first counts, but STALE counts always."""
        with self._lock:
            if self.why is None or why is End.STALE:
                self.why = why
        self.over.set()

    def check(self) -> None:
        """Raises `Interrupted`."""
        if self.over.is_set():
            raise Interrupted()

    # -- what is told -------------------------------------------------------------------------------

    def report(self) -> Report:
        """How far it is, with the next number."""
        with self._lock:
            self._number += 1
            epoch, number = self._epoch, self._number
        step, disks = self.progress.seen()
        return Report(task_id=self.task_id, epoch=epoch, number=number, step=step, disks=disks, made=self.made)


def _lent(claimed: Claimed) -> LentCredentials | None:
    given = None if claimed.vault is None else claimed.vault.credentials
    return None if given is None else LentCredentials(_token(given))


def _login(cloud: CloudAccess | None) -> LentLogin | None:
    if cloud is None:
        return None
    try:
        # only where there is a cloud: it takes a second to import
        from raksha.openstack.lent import LentLogin
    except ImportError as error:
        _log.error(
            "the cloud cannot be asked without the package %s: pip install 'raksha[agent,openstack]'", error.name
        )
        return None
    return LentLogin(cloud.token, cloud.endpoints, os.environ.get("OS_CACERT") or True)


def _token(credentials: Mapping[str, str]) -> TokenCredentials:
    """With the certificates that this host trusts."""
    return given_token({**credentials, **{name: os.environ[name] for name in ("OS_CACERT",) if name in os.environ}})
