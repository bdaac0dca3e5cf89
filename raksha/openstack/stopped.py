"""A server of Nova that must stay off while its disks are written: locked, by the project, with a reason.

Nova lets nobody of the project start, delete or resize a locked server; operators it lets. One that was locked already
stays so. After a killed restore the lock is there still: the next attempt knows it by its reason and ends it; else the
project unlocks the server itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raksha.errors import CloudMissing, RakshaError, VmBusy
from raksha.openstack.lent import LentLogin, asking

_SERVICE = "compute"
_log = logging.getLogger(__name__)


@contextmanager
def kept_off(cloud: LentLogin, server_id: str, restore: str) -> Iterator[None]:
    """Raises `VmBusy` unless it is SHUTOFF and nothing is under way, `CloudMissing`, `CloudRefused`,
    `CloudUnavailable`."""
    reason = f"Raksha writes its disks (restore {restore})"
    shown = _shown(cloud, server_id)
    _require_off(shown)
    ours = not shown["locked"] or shown.get("locked_reason") == reason
    if not shown["locked"]:
        with asking(_SERVICE):
            cloud.compute().servers.lock(server_id, reason)
    try:
        _require_off(_shown(cloud, server_id))
        yield
    finally:
        if ours:
            _unlock(cloud, server_id)


def _shown(cloud: LentLogin, server_id: str) -> Any:
    with asking(_SERVICE):
        return cloud.compute().servers.get(server_id).to_dict()


def _require_off(shown: Any) -> None:
    task = shown.get("OS-EXT-STS:task_state")
    if shown["status"] != "SHUTOFF" or task:
        detail = f"Nova says that it is {shown['status']}{f', {task}' if task else ''}; stop it first"
        raise VmBusy(vm=shown["name"], detail=detail)


def _unlock(cloud: LentLogin, server_id: str) -> None:
    """Whatever went wrong before is to be told, not this."""
    try:
        with asking(_SERVICE):
            cloud.compute().servers.unlock(server_id)
    except CloudMissing:
        return
    except RakshaError as error:
        _log.error("server %s may still be locked: %s", server_id, error)
