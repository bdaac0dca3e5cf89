"""What an API finds in its database: agents with VMs, jobs, runs in every state, restore points with chains."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.db import backups, jobs, rows, runs, services, vaults
from raksha.db.columns import SECOND
from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    Service,
    VaultService,
    VmResourceBackup,
)
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import (
    BackupKind,
    BackupState,
    Consistency,
    ReadMode,
    Reason,
    RunState,
    RunVmState,
    ServiceKind,
    Trigger,
)
from tests.unit.api.conftest import Api

WEB, DB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
FOREIGN, UNOWNED = "00000000-0000-4000-8000-0000000000f0", "00000000-0000-4000-8000-0000000000ff"
NOBODY = "00000000-0000-4000-8000-0000000000ee"

_WAYS: dict[RunState, list[RunState]] = {
    RunState.QUEUED: [],
    RunState.READY: [RunState.READY],
    RunState.RUNNING: [RunState.READY, RunState.RUNNING],
    RunState.COMMITTING: [RunState.READY, RunState.RUNNING, RunState.COMMITTING],
    RunState.AVAILABLE: [RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE],
    RunState.CANCELLED: [RunState.CANCELLED],
    RunState.ERROR: [RunState.ERROR],
    RunState.CANCELLING: [RunState.READY, RunState.CANCELLING],
    RunState.NEEDS_ATTENTION: [RunState.READY, RunState.RUNNING, RunState.NEEDS_ATTENTION],
}
_WAYS[RunState.DEGRADED] = [*_WAYS[RunState.AVAILABLE], RunState.DEGRADED]
_WAYS[RunState.DELETING] = [*_WAYS[RunState.AVAILABLE], RunState.DELETING]


def agents(database: Database) -> Service:
    """host-a sees a VM of each sort; host-b saw one of them before it moved."""

    def work(session: Session) -> Service:
        facts = {"version": "1", "capacity": 4, "zone": "east"}
        old = services.register(session, ServiceKind.AGENT, "host-b", host="host-b", instance="b", **facts)
        services.see(session, old.id, [services.Sight(WEB, "web", "shut off", "p1")])
        agent = services.register(session, ServiceKind.AGENT, "host-a", host="host-a", instance="a", **facts)
        disk = {"target": "vda", "size": 1 << 30, "reason": None}
        refusal = {"code": "vm_unsupported", "message": "it has a host device"}
        services.see(session, agent.id, [
            services.Sight(WEB, "web", "running", "p1", ("gold", "x"), {"tier": "1"}, (disk,)),
            services.Sight(DB, "db", "shut off", "p1", (), {}, (disk,), refusal),
            services.Sight(FOREIGN, "foreign", "running", "p2"),
            services.Sight(UNOWNED, "unowned", "running", None),
        ])  # fmt: skip
        return agent

    return database.run(work)


def vault(database: Database, name: str = "main", **more: Any) -> VaultService:
    given = {"kind": "directory", "url": "file:///srv/vault", "is_default": name == "main", **more}
    return database.run(lambda s: vaults.declare(s, name, **given))


def job(api: Api, user: str = "member", project: str = "p1", **body: Any) -> dict[str, Any]:
    """Made over the API. `agents` must be there."""
    given = {"name": "nightly", "vms": [{"id": WEB if project == "p1" else FOREIGN}], **body}
    answer = api("POST", f"/v1/{project}/backupjobs", user, json=given)
    assert answer.status_code == 201, answer.data
    made: dict[str, Any] = answer.json
    return made


def run(database: Database, job_id: str, state: RunState = RunState.QUEUED, **values: Any) -> BackupJobRun:
    """A run that has come to a state, without anything stored."""

    def work(session: Session) -> BackupJobRun:
        return _run(session, job_id, state, **values)

    return database.run(work)


def _run(session: Session, job_id: str, state: RunState, **values: Any) -> BackupJobRun:
    owner = jobs.get(session, None, job_id)
    given = {"kind": BackupKind.FULL, "trigger": Trigger.SCHEDULE, **values}
    made = runs.create(session, owner, **given)
    for step in _WAYS[state]:
        transition(session, BackupJobRun, made.id, step)
    session.refresh(made)
    return made


def point(
    database: Database, job_id: str, *, disks: tuple[str, ...] = ("vda",), parent: BackupJobRun | None = None,
    state: RunState = RunState.AVAILABLE, vms: tuple[str, ...] = (WEB,), taken_at: int | None = None, **values: Any,
) -> BackupJobRun:  # fmt: skip
    """A restore point with stored disks; `parent`: they build on those of that one. `taken_at`: epoch seconds."""

    def work(session: Session) -> BackupJobRun:
        service = vaults.declare(session, "main", kind="directory", url="file:///srv/vault", is_default=True)
        made_vault = vaults.of_project(session, service, jobs.get(session, None, job_id).project_id, "file:///srv/p")
        kind = BackupKind.FULL if parent is None else BackupKind.INCREMENTAL
        taken = rows.clock(session) if taken_at is None else taken_at * SECOND
        told = {"taken_at": taken, "consistency": Consistency.QUIESCED, "skew_seconds": 0.004, "frozen_seconds": 0.25,
                "group_consistent": True, "skew_error_seconds": 0.001, "bytes_total": 1000,
                "bytes_done": 500}  # fmt: skip
        made = _run(session, job_id, state, kind=kind, **told, **values)
        for vm_id in vms:
            vm = BackupJobRunVm(backupjobrun_id=made.id, vm_id=vm_id, name="web" if vm_id == WEB else "db",
                                host="host-a", engine="overlay", consistency=Consistency.QUIESCED)  # fmt: skip
            session.add(vm)
            session.flush()
            for step in (RunVmState.RUNNING, RunVmState.STORED):
                transition(session, BackupJobRunVm, vm.id, step)
            for disk in disks:
                _copy(session, made, made_vault, vm, disk, kind, parent)
        return made

    return database.run(work)


def _copy(
    session: Session, made: BackupJobRun, in_vault: Any, vm: BackupJobRunVm, disk: str, kind: BackupKind,
    parent: BackupJobRun | None,
) -> None:  # fmt: skip
    resource = BackupJobRunVmResource(
        backupjobrun_vm_id=vm.id, resource=disk, size=1 << 30, kind=kind, bytes_total=100, bytes_done=40,
        mode=ReadMode.FULL if parent is None else ReadMode.DELTA, reason=Reason.FIRST_RUN if parent is None else None,
    )  # fmt: skip
    session.add(resource)
    session.flush()
    below = None
    if parent is not None:
        mine = {"backupjobrun_id": parent.id, "vm_id": vm.vm_id, "resource": disk}
        below = session.query(VmResourceBackup).filter_by(**mine).one()
    copy = backups.create(
        session, resource, in_vault, backupjob_id=made.backupjob_id, backupjobrun_id=made.id, vm_id=vm.vm_id,
        kind=kind, size=1 << 30, cluster_size=65536, bytes_stored=1000, map_digest="0" * 64,
        vm_resource_backup_backing_id=below.id if below else None,
    )  # fmt: skip
    transition(session, VmResourceBackup, copy.id, BackupState.AVAILABLE)


def set_job(database: Database, job_id: str, **values: Any) -> None:
    """Columns that only schedulers write."""
    database.run(lambda s: s.execute(update(BackupJob).where(BackupJob.id == job_id).values(**values)))
