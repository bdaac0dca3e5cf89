"""Test restores begin: verifications that boot the VMs of one restore point.

    asked for       a restore point that somebody names, or the newest whole one of a job
    when it is time the newest whole one of the job that had none for longest, as the job says (`test_restore`), or else
                    the operator (`test_restore_every`); one of a project at a time

A BOOT task for each VM, for any agent that can boot and that the job's `placement` allows. All that is read is pinned
until the end. No more than `max_test_restores` have tasks at once, the others wait. One that no agent takes has failed
after `max_wait`.
"""

from __future__ import annotations

import logging

import msgspec
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, jobs, rows, runs, tasks, verifications
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, BackupJobRunVm, Verification, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import StateConflict
from raksha.scheduler import booting
from raksha.scheduler.recording import machine_digest, recorded
from raksha.states import Consistency, PinHolder, TaskKind, Trigger, VerificationState
from raksha.tasks import BootOrder

_log = logging.getLogger(__name__)

#: of an agent that may have these tasks
NEEDS = "boot"
#: behind backups and restores, and behind what somebody waits for
_ASKED_FOR = -50
_BY_AGE = -100
_GONE = {"code": "run_gone", "message": "there is no restore point to boot any more"}
_NOTHING = {"code": "nothing_to_boot", "message": "none of what was asked for is a VM of this restore point"}
_NOBODY = {"code": "not_claimed", "message": "no agent took it in time: `[agent] test_restores` of those that may"}


def add_due(database: Database, settings: SchedulerSettings) -> None:
    """One test restore that it is time for."""

    def work(session: Session) -> None:
        found = verifications.boot_due(session, settings.test_restore_every)
        if found is not None:
            job, run = found
            verifications.create(
                session, job, run.id, boot=True, data=False, percent=0, trigger=Trigger.SCHEDULE,
                marker=job.test_marker, timeout=job.test_timeout,
            )  # fmt: skip

    if settings.max_test_restores == 0:
        return
    with database.reading() as session:
        if verifications.boot_due(session, settings.test_restore_every) is None:
            return
    try:
        database.run(work)
    except StateConflict:  # somebody has asked for it
        return


def one(session: Session, row: Verification, settings: SchedulerSettings) -> bool:
    """Whether it got its tasks now. Raises `StateConflict`, `RowNotFound`: another was first."""
    mine = tasks.of_verification(session, row.id)
    waited = (rows.clock(session) - row.created_at) / SECOND
    if row.cancel_requested_at is not None:
        tasks.cancel(session, verification_id=row.id)
        booting.settle(session, row.id)
    elif mine and row.state == VerificationState.QUEUED and waited > settings.max_wait:
        tasks.cancel(session, verification_id=row.id)
        booting.end(session, row, VerificationState.ERROR, _NOBODY)
    elif mine or row.state != VerificationState.QUEUED:
        booting.settle(session, row.id)
    elif verifications.boots_under_way(session) < settings.max_test_restores:
        return _start(session, row, settings)
    return False


def _start(session: Session, row: Verification, settings: SchedulerSettings) -> bool:
    run = runs.get(session, None, row.backupjobrun_id or "")
    copies = [copy for copy in backups.of_run(session, run.id) if copy.state in backups.READABLE]
    if run.state not in runs.POINTS or not copies:
        booting.end(session, row, VerificationState.ERROR, _GONE)
        return False
    asked = {str(vm["id"]) for vm in row.vms}
    wanted = [vm for vm in booting.machines(session, run.id) if not asked or vm.vm_id in asked]
    if not wanted:
        booting.end(session, row, VerificationState.ERROR, _NOTHING)
        return False
    if not verifications.take(session, row.id, row.epoch):
        return False
    mine = {vm.vm_id: [copy for copy in copies if copy.vm_id == vm.vm_id] for vm in wanted}
    read = [copy.id for each in mine.values() for copy in each]
    backups.pin(session, PinHolder.VERIFY, row.id, backups.with_parents(session, read))
    verifications.note_vms(session, row.id, [booting.entry(vm) for vm in wanted])
    for vm in wanted:
        _add(session, row, run, vm, mine[vm.vm_id], settings)
    tasks.release(session, verification_id=row.id)
    _log.info("test restore %s of run %s is begun", row.id, run.id, extra={"action": "boot", "verification": row.id})
    return True


def _add(
    session: Session, row: Verification, run: BackupJobRun, vm: BackupJobRunVm, copies: list[VmResourceBackup],
    settings: SchedulerSettings,
) -> None:  # fmt: skip
    order = BootOrder(
        verification=row.id,
        backupjob=run.backupjob_id,
        backupjobrun=run.id,
        vm=vm.vm_id,
        recorded=recorded(session, [copy.id for copy in copies]),
        machine_digest=machine_digest(session, run.id, vm.vm_id),
        marker=row.marker,
        timeout=row.timeout or settings.test_restore_timeout,
        expects_agent=vm.consistency == Consistency.QUIESCED,
    )
    tasks.add(
        session, kind=TaskKind.BOOT, project_id=row.project_id, verification_id=row.id, vault_id=run.vault_id,
        vm_id=vm.vm_id, needs=NEEDS, placement=jobs.get(session, None, run.backupjob_id).placement,
        priority=_BY_AGE if row.trigger == Trigger.SCHEDULE else _ASKED_FOR, order=msgspec.to_builtins(order),
    )  # fmt: skip
