"""Starts queued restores, and brings about the end of those that somebody wants no more.

    each VM of it               a RESTORE task on one host: the one that is asked for, else where the VM is (or was),
                                else the least busy; both of those that the job's `placement` allows
    in place                    the VM's host and no other, with the VM's own slot: no backup reads it meanwhile
    what it reads               pinned from the POST on, and again here

A restore stays with its host: what it has made is there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha import logs
from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, jobs, restores, rows, runs, services, slots, tasks
from raksha.db.columns import SECOND, now
from raksha.db.models import Restore, Service, VmResourceBackup
from raksha.db.session import Database
from raksha.db.slots import Slot
from raksha.db.transition import transition
from raksha.errors import RowNotFound, StateConflict
from raksha.scheduler import restoring
from raksha.scheduler.placement import willing
from raksha.scheduler.recording import machine_digest, recorded
from raksha.states import PinHolder, RestoreState, RunState, ServiceKind, ServiceState, TaskKind
from raksha.tasks import CLOUD_KINDS, RestoreOrder

_log = logging.getLogger(__name__)

#: restores looked at in one round
LOOKED_AT = 200
#: a person waits for it
PRIORITY = 50
_POINTS = (RunState.AVAILABLE, RunState.DEGRADED)


class Started(Struct, frozen=True):
    """What one round did."""

    hosts: frozenset[str]


def start(database: Database, settings: SchedulerSettings) -> Started:
    """One round over the restores that have not ended."""
    with database.reading() as session:
        going = restores.in_state(session, restoring.GOING, LOOKED_AT)
        found = [(restore.id, restore.backupjobrun_id, restore.request_id) for restore in going]
        alive = {a.host: a for a in services.alive(session, ServiceKind.AGENT, settings.agent_timeout)}
    hosts: set[str] = set()
    for id, run_id, request_id in found:
        with logs.about(None, run_id, request_id):
            try:
                begun = database.run(partial(_one, id=id, alive=alive, settings=settings))
            except (StateConflict, RowNotFound):  # another scheduler was first, or what it reads is going
                continue
            if begun:
                _log.info("restore %s is begun on %s", id, ", ".join(sorted(begun)), extra={"action": "restore"})
        hosts |= begun
    return Started(frozenset(hosts))


def _one(session: Session, id: str, alive: Mapping[str, Service], settings: SchedulerSettings) -> set[str]:
    restore = restores.get(session, None, id)
    mine = tasks.of_restore(session, id)
    if restore.cancel_requested_at is not None and restore.state in restores.CANCELLABLE:
        return _cancel(session, restore, bool(mine))
    if mine:
        restoring.settle(session, id)
        return set()
    if restore.state != RestoreState.QUEUED:
        return set()
    return _start(session, restore, alive, settings)


def _cancel(session: Session, restore: Restore, begun: bool) -> set[str]:
    """Its agents are asked to stop; what they have made by then, they remove."""
    if not begun:
        _end(session, restore, RestoreState.CANCELLED, None)
        return set()
    tasks.cancel(session, restore_id=restore.id)
    if restore.state == RestoreState.RUNNING:
        transition(session, Restore, restore.id, RestoreState.CANCELLING, start={RestoreState.RUNNING})
    restoring.settle(session, restore.id)
    return set()


def _start(session: Session, restore: Restore, alive: Mapping[str, Service], settings: SchedulerSettings) -> set[str]:
    found = None if restore.backupjobrun_id is None else runs.get(session, None, restore.backupjobrun_id)
    if found is None or found.state not in _POINTS:
        _end(session, restore, RestoreState.ERROR, _said("run_gone", "its restore point is there no more"))
        return set()
    waited = (rows.clock(session) - restore.created_at) / SECOND
    allowed = jobs.get(session, None, found.backupjob_id).placement
    placed = {}
    for vm in restore.target["vms"]:
        host = _host(session, restore.target, vm["vm"], alive, allowed)
        if host is None:
            if waited > settings.max_wait:
                _end(session, restore, RestoreState.ERROR, _said("agent_gone", f"no host could take VM {vm['vm']}"))
            return set()
        placed[vm["vm"]] = host
    own = [Slot("vm", vm) for vm in placed] if restore.target["kind"] == "in_place" else []
    if own and slots.reserve(session, restore.id, own) is not None:  # a backup is at work on it
        return set()
    if not restores.take(session, restore.id, restore.epoch):  # another scheduler is making its tasks just now
        return set()
    backups.pin(session, PinHolder.RESTORE, restore.id, _read(session, found.id, restore.target["vms"]))
    for vm in restore.target["vms"]:
        order = RestoreOrder(
            restore=restore.id, backupjob=found.backupjob_id, backupjobrun=found.id, vm=vm["vm"],
            disks=tuple(vm["disks"]), target=_target(restore.target, vm),
            recorded=recorded(session, _read(session, found.id, [vm])),
            machine_digest=machine_digest(session, found.id, vm["vm"]),
        )  # fmt: skip
        tasks.add(
            session, kind=TaskKind.RESTORE, project_id=restore.project_id, restore_id=restore.id,
            vault_id=found.vault_id, vm_id=vm["vm"], host=placed[vm["vm"]], priority=PRIORITY,
            order=msgspec.to_builtins(order),
        )  # fmt: skip
    tasks.release(session, restore_id=restore.id)
    return set(placed.values())


def _host(
    session: Session,
    target: Mapping[str, Any],
    vm_id: str,
    alive: Mapping[str, Service],
    allowed: Mapping[str, Any] | None,
) -> str | None:
    """None: not now. `allowed`: hosts and zones, where nobody has said which host."""
    seen = [service for service, _ in services.agents_of(session, vm_id)]
    if target["kind"] == "in_place":
        wanted = [seen[0].host] if seen else []
    elif target.get("host"):
        wanted = [target["host"]]
    else:
        able = willing(alive.values(), allowed)
        wanted = [service.host for service in seen if service.id in {agent.id for agent in able}]
        wanted += [agent.host for agent in able]
    fit = (host for host in wanted if host in alive and alive[host].state == ServiceState.ENABLED)
    return next(fit, None)


def _target(target: Mapping[str, Any], vm: Mapping[str, Any]) -> dict[str, Any]:
    """Of one VM."""
    named = {"kind": target["kind"], "name": vm.get("name")}
    if target["kind"] in CLOUD_KINDS:
        over = {"overwrite": vm["overwrite"]} if vm.get("overwrite") else {}
        return {**named, "start": target["start"], **target["cloud"], **over}
    return {**named, **{key: target[key] for key in ("directory", "format", "start") if target.get(key) is not None}}


def _read(session: Session, run_id: str, vms: Sequence[Mapping[str, Any]]) -> set[str]:
    """All copies that are read: those of the disks, and what they build on."""
    mine = VmResourceBackup.backupjobrun_id == run_id, VmResourceBackup.vm_id.in_([vm["vm"] for vm in vms])
    disks = {vm["vm"]: vm["disks"] for vm in vms}
    found = [
        copy.id for copy in session.scalars(select(VmResourceBackup).where(*mine))
        if not disks[copy.vm_id] or copy.resource in disks[copy.vm_id]
    ]  # fmt: skip
    return set(backups.with_parents(session, found))


def _end(session: Session, restore: Restore, to: RestoreState, error: dict[str, str] | None) -> None:
    transition(session, Restore, restore.id, to, start={RestoreState.QUEUED}, error=error, finished_at=now())
    backups.unpin(session, restore.id)
    slots.release(session, restore.id)


def _said(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
