"""Puts right what an earlier process of this agent left behind, before anything is done to those VMs.

At start every VM that the journal remembers is recovered, one after the other, while other VMs are worked on already. A
task waits for its VM. What cannot be put right is logged; the task then meets it itself, and says so.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing

from raksha.config import Settings
from raksha.errors import Interrupted, RakshaError, VmNotFound
from raksha.journal import Journal
from raksha.virt.libvirt.connection import Connection
from raksha.virt.libvirt.host_recovery import VmRecovery, recover

_log = logging.getLogger(__name__)

#: seconds between two looks whether the wait is still wanted
_POLL = 0.2


class Recovery:
    """`run` once; `wait_for` and `again` from any thread."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._open = {vm: threading.Event() for vm in journal.known_vms()}
        self._stop = threading.Event()

    def run(self) -> None:
        """Every VM, one after the other, until `stop`."""
        for vm, done in self._open.items():
            try:
                if not self._stop.is_set():
                    for line in self.again(vm):
                        _log.warning("recovery of VM %s: %s", vm, line, extra={"action": "recovery"})
            except RakshaError as error:
                _log.error("recovery of VM %s: %s", vm, error, extra={"action": "recovery"})
            except Exception:  # what nobody thought of must not keep all other VMs waiting
                _log.exception("recovery of VM %s failed", vm, extra={"action": "recovery"})
            finally:
                done.set()

    def stop(self) -> None:
        self._stop.set()

    def wait_for(self, vm: str, over: threading.Event) -> None:
        """Until this VM is recovered. Raises `Interrupted` once `over` is set."""
        done = self._open.get(vm)
        while done is not None and not done.wait(_POLL):
            if over.is_set():
                raise Interrupted()

    def again(self, vm: str) -> list[str]:
        """One VM, now. Returns what a person should know."""
        try:
            with closing(Connection(self._settings.libvirt_uri)) as connection:
                (found,) = recover(connection, self._journal, self._settings, [vm], dry_run=False)
        except VmNotFound:  # and nothing of it is remembered
            return []
        return _told(found)


def _told(found: VmRecovery) -> list[str]:
    return [*found.notes, *([] if found.trouble is None else [f"{found.trouble} {found.trouble.advice()}".strip()])]
