"""A run that has what it needs becomes READY: its VMs, a claimable task with its whole order for each, its group."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.db import groups, tasks
from raksha.db.columns import new_id
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Task, Vault
from raksha.db.slots import Slot
from raksha.db.transition import transition
from raksha.scheduler.parents import choose
from raksha.scheduler.placement import STORAGE, Placed, Wait
from raksha.scheduler.round import Round
from raksha.states import BackupKind, RunState, RunVmState, Source, TaskKind
from raksha.tasks import BackupOrder


class Plan(Struct, frozen=True):
    """What a run needs."""

    placed: Sequence[Placed]
    #: VMs that are left out
    skipped: Sequence[Wait]
    vault: Vault
    wanted: Sequence[Slot]


def begin(session: Session, round_: Round, run: BackupJobRun, job: BackupJob, plan: Plan) -> None:
    vault = plan.vault
    transition(
        session, BackupJobRun, run.id, RunState.READY, start={RunState.QUEUED}, queued_reason=None, vault_id=vault.id,
        warnings=_apart(job, plan),
    )  # fmt: skip
    together = [each for each in plan.placed if each.host is not None]
    group = new_id() if job.consistency_group and len(together) > 1 else None
    by_vm = {}
    for each in plan.placed:
        session.add(_vm_of_run(run, each))
        task = _task(session, run, job, vault, each, group if each in together else None)
        if each in together:
            by_vm[each.member.vm_id] = task.id
    for wait in plan.skipped:
        vm = BackupJobRunVm(backupjobrun_id=run.id, vm_id=wait.vm_id)
        session.add(vm)
        session.flush()
        transition(session, BackupJobRunVm, vm.id, RunVmState.SKIPPED, error=wait.document())
    if group is not None:
        groups.open_group(session, run.id, by_vm, round_.settings.gather_timeout, id=group)
    tasks.release(session, run_id=run.id)


def _apart(job: BackupJob, plan: Plan) -> list[str]:
    """What a group was asked for of, and cannot be part of it."""
    if not job.consistency_group or len(plan.placed) < 2:
        return []
    apart = [each.member for each in plan.placed if each.host is None]
    kinds = {Source.VOLUME: "volume", Source.STORAGE: "VM"}
    return [f"{kinds[m.source]} {m.vm_id} was taken from storage, outside the consistency group" for m in apart]


def _vm_of_run(run: BackupJobRun, each: Placed) -> BackupJobRunVm:
    return BackupJobRunVm(
        backupjobrun_id=run.id,
        vm_id=each.member.vm_id,
        source=each.member.source,
        name=each.name,
        host=each.host,
        excluded_disks=list(each.member.excluded_disks),
    )


def _task(session: Session, run: BackupJobRun, job: BackupJob, vault: Vault, each: Placed, group: str | None) -> Task:
    vm = each.member.vm_id
    used = choose(session, run, vault.id, vm, each.disks)
    order = BackupOrder(
        backupjob=job.id,
        backupjobrun=run.id,
        vm=vm,
        exclude=each.member.excluded_disks,
        quiesce=job.quiesce,
        engine=job.engine,
        source=each.member.source,
        force=each.member.force,
        full=run.kind == BackupKind.FULL,
        parents=used.parents,
        reasons=used.reasons,
        history=used.history,
        clones=used.clones,
        recorded=used.recorded,
        group=group,
        alone=job.on_vm_failure == "degrade",
        max_parallel_disks=job.max_parallel_disks,
        bandwidth_limit=job.bandwidth_limit,
    )
    return tasks.add(
        session,
        kind=TaskKind.BACKUP,
        project_id=run.project_id,
        backupjobrun_id=run.id,
        vault_id=vault.id,
        vm_id=vm,
        host=each.host,
        needs=None if each.host is not None else STORAGE,
        placement=None if each.host is not None else job.placement,
        order=msgspec.to_builtins(order),
    )
