"""Starts queued runs.

    the queue: the first of each project, then the second of each, ...      raksha.db.runs.queued
    for each, in one transaction:
        its VMs, each with the agent that has it, and its vault             else: a reason, and later again
        what is taken from storage: an agent that could do that             else: a reason, and later again
        room in its project for one more restore point                      else: a reason, and later again
        all slots of VMs, hosts, project and vault                          else: a reason, nothing is reserved
        the run READY, what it may build on pinned, a claimable task with its whole order for each VM, its group open

A project's first run makes its vault: between two transactions, before anything can be claimed.

A host has a slot for each task that its agent may hold, so a group that was started can be claimed as a whole. What is
taken from storage is of no host and of no group: the agent that has room first gets it, and its host is noted with the
claim. What agents have claimed of that counts when slots of their hosts are wanted.
A run that was overtaken for too long keeps the slots it waits for from those behind it.

Promises: a run has all of its slots and tasks or none of them, whoever dies; two that want the same never wait for each
other. Does not promise exact fairness between schedulers that look at the same moment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import msgspec
from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import groups, jobs, room, rows, runs, services, slots, tasks, usage, vaults
from raksha.db.columns import SECOND, new_id, now
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Reservation, Service, Task, Vault, VaultService
from raksha.db.session import Database
from raksha.db.slots import Slot
from raksha.db.transition import transition
from raksha.errors import IdentityUnavailable, RakshaError, RowNotFound, StateConflict, TrustBroken
from raksha.scheduler import advance, whose
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.parents import choose
from raksha.scheduler.placement import STORAGE, Placed, Wait, members, place, place_anywhere, willing
from raksha.scheduler.places import make_vault, vault_url
from raksha.scheduler.suspension import suspend
from raksha.scheduler.whose import Cloud
from raksha.states import BackupKind, JobState, RunState, RunVmState, ServiceKind, Source, TaskKind, TaskState
from raksha.tasks import BackupOrder

_log = logging.getLogger(__name__)

#: runs looked at in one round
LOOKED_AT = 1000
#: tasks that any agent can do of which agents are told in one round
_TOLD = 100


class Dispatched(Struct, frozen=True):
    """What one round did."""

    started: int
    #: runs that stay in the queue, as far as they were looked at
    waiting: int
    #: whose agents have something to claim
    hosts: frozenset[str]


class _Plan(Struct, frozen=True):
    """What a run needs."""

    placed: Sequence[Placed]
    #: VMs that are left out
    skipped: Sequence[Wait]
    vault: Vault
    wanted: Sequence[Slot]


class _NoVaultYet(Struct, frozen=True):
    """It is to be made first."""

    vault: Vault


class _Round:
    """What was seen in one round, so that it is not looked up again for each run."""

    def __init__(self, settings: SchedulerSettings, now: int, alive: Mapping[str, Service]) -> None:
        self.settings = settings
        self.now = now
        #: agents by id
        self.alive = alive
        #: slots, by kind and name, of which none is left
        self.full: set[tuple[str, str]] = set()
        #: slots, by kind and name, that are kept for runs which were overtaken too long
        self.kept: set[tuple[str, str]] = set()
        #: vaults that were to be made in this round, and why that failed
        self.unmade: dict[str, Wait | None] = {}
        #: the same of vault services that do not answer: one that is away is waited for once
        self.away: dict[str, Wait] = {}
        #: Keystone does not answer
        self.identity_away: IdentityUnavailable | None = None
        #: nor does Nova
        self.cloud_away: Wait | None = None
        #: bytes that projects had stored when the round came to them, where that is limited
        self.stored: dict[str, int] = {}
        #: trusts that stand
        self.trusted: set[str] = set()

    def waited(self, run: BackupJobRun) -> float:
        """Seconds."""
        return (self.now - run.created_at) / SECOND

    def in_vain(self, run: BackupJobRun) -> bool:
        """What it waited for when it was looked at last has nothing left for anybody: a thousand that wait for one host
        cost one look a round."""
        said = (run.queued_reason or {}).get("slot")
        return ("project", run.project_id) in self.full or (said is not None and tuple(said) in self.full)


def dispatch(database: Database, settings: SchedulerSettings, access: Access = ENVIRONMENT) -> Dispatched:
    """One round over the queue."""
    with database.reading() as session:
        found = runs.queued(session, LOOKED_AT)
        agents = services.alive(session, ServiceKind.AGENT, settings.agent_timeout)
        round_ = _Round(settings, rows.clock(session), {agent.id: agent for agent in agents})
    hosts: set[str] = set()
    started = waiting = 0
    # those that were overtaken too long go first; otherwise the order stays
    for run in sorted(found, key=lambda run: round_.waited(run) < settings.max_overtaken):
        if round_.in_vain(run):
            waiting += 1
            continue
        try:
            outcome = _started(database, round_, run, access)
        except (StateConflict, RowNotFound):  # cancelled, another scheduler has it, or a copy of it went just now
            continue
        if isinstance(outcome, Wait):
            waiting += 1
            if outcome.slot is not None and outcome.none_left:
                round_.full.add(outcome.slot)
        else:
            started += bool(outcome)
            hosts |= {host for host in outcome if host is not None}
    with database.reading() as session:
        hosts |= _told(session, agents)
    return Dispatched(started, waiting, frozenset(hosts))


def _started(database: Database, round_: _Round, run: BackupJobRun, access: Access) -> Wait | set[str | None]:
    """Makes the vault as well, where there is none."""
    run_id = run.id
    if (refused := _not_delegated(database, round_, run, access)) is not None:
        return database.run(partial(_refuse, round_=round_, run_id=run_id, error=refused))
    cloud = _asked(database, round_, run, access)
    if isinstance(cloud, Wait):
        return database.run(partial(_hold, round_=round_, run_id=run_id, wait=cloud))
    outcome = database.run(partial(_start, round_=round_, run_id=run_id, cloud=cloud))
    if not isinstance(outcome, _NoVaultYet):
        return outcome
    vault = outcome.vault
    if vault.id not in round_.unmade:
        made = round_.away.get(vault.vault_service_id) or make_vault(database, vault, access, run.backupjob_id)
        round_.unmade[vault.id] = made
        if made is not None and made.code == "vault_away":
            round_.away[vault.vault_service_id] = made
    unmade = round_.unmade[vault.id]
    again = database.run(partial(_start, round_=round_, run_id=run_id, cloud=cloud, unmade=unmade))
    if isinstance(again, _NoVaultYet):  # it was made, and the row is gone since
        raise RowNotFound(noun=vaults.NOUN, id=vault.id)
    return again


def _not_delegated(database: Database, round_: _Round, run: BackupJobRun, access: Access) -> RakshaError | None:
    """Whether the job may still act for its owner, where it does so by a trust."""
    with database.reading() as session:
        job = jobs.get(session, None, run.backupjob_id)
    trust = job.trust_id
    if trust is None or trust in round_.trusted or job.state in (JobState.SUSPENDED, JobState.DELETING):
        return None
    if round_.identity_away is not None:
        return round_.identity_away
    try:
        access.check(trust)
    except IdentityUnavailable as error:
        round_.identity_away = error
        return error
    except TrustBroken as error:
        return error
    round_.trusted.add(trust)
    return None


def _asked(database: Database, round_: _Round, run: BackupJobRun, access: Access) -> Cloud | Wait | None:
    """What Nova says of the job's VMs. None: there is none to ask."""
    with database.reading() as session:
        job = jobs.get(session, None, run.backupjob_id)
        there = jobs.members(session, [job.id])[job.id]
        named = frozenset(vm.vm_id for vm in there if vm.source == Source.HYPERVISOR)
    if job.state in (JobState.SUSPENDED, JobState.DELETING):
        return None
    if job.trust_id is not None and round_.cloud_away is not None:
        return round_.cloud_away
    try:
        found = whose.ask(access, job, named, others=round_.settings.libvirt_vms)
    except TrustBroken as error:  # it went just now: the next round says so of the job
        return Wait(error.code, str(error))
    if isinstance(found, Wait) and found.code == "cloud_away":
        round_.cloud_away = found
    return found


def _refuse(session: Session, round_: _Round, run_id: str, error: RakshaError) -> Wait | set[str | None]:
    run = runs.get(session, None, run_id)
    if isinstance(error, IdentityUnavailable) and round_.waited(run) <= round_.settings.max_wait:
        wait = Wait("identity_away", str(error))
        _stay(session, round_, run, wait)
        return wait
    job = jobs.get(session, None, run.backupjob_id)
    advance.fail(session, run, job, error.document(), round_.settings)
    if isinstance(error, TrustBroken):
        suspend(session, job.id, error)
    return set()


def _start(
    session: Session, round_: _Round, run_id: str, cloud: Cloud | None = None, unmade: Wait | None = None
) -> Wait | set[str | None] | _NoVaultYet:
    """One run, whole or not at all. The hosts on which it starts, None for any; nothing: it has failed."""
    run = runs.get(session, None, run_id)
    job = jobs.get(session, None, run.backupjob_id)
    plan = _plan(session, round_, run, job, cloud)
    if isinstance(plan, _NoVaultYet):
        if unmade is None:
            return plan
        plan = unmade
    if isinstance(plan, Wait):
        return _hold(session, round_, run_id, plan)
    _begin(session, round_, run, job, plan)
    return {placed.host for placed in plan.placed}


def _hold(session: Session, round_: _Round, run_id: str, wait: Wait) -> Wait | set[str | None]:
    """It waits on, or has waited long enough."""
    run = runs.get(session, None, run_id)
    if wait.final or (wait.slot is None and round_.waited(run) > round_.settings.max_wait):
        job = jobs.get(session, None, run.backupjob_id)
        advance.fail(session, run, job, wait.document(), round_.settings)
        return set()
    _stay(session, round_, run, wait)
    return wait


# -- what a run needs -------------------------------------------------------------------------------


def _plan(
    session: Session, round_: _Round, run: BackupJobRun, job: BackupJob, cloud: Cloud | None
) -> _Plan | Wait | _NoVaultYet:
    """What the run needs, all its slots reserved; or why not, with nothing reserved."""
    if job.state in (JobState.SUSPENDED, JobState.DELETING):
        return Wait("job_not_active", f"its job is {job.state}")
    service = _vault_service(session, job)
    if service is None:
        return Wait("no_vault", "there is no vault that its project may use")
    placed, missing = _place_all(session, round_, job, cloud)
    if missing and not (placed and job.on_vm_failure == "degrade"):
        # first what no wait helps against
        return min(missing, key=lambda wait: not wait.final)
    if round_.waited(run) <= round_.settings.max_wait and (hoped := [wait for wait in missing if not wait.final]):
        return hoped[0]
    own = usage.limits(session, job.project_id)
    wanted = _slots(round_, job, service, placed, own)
    blocked = (
        _too_large(job, placed)
        or _no_room(session, round_, job, own)
        or _vm_in_use(session, run, placed)
        or _kept(round_, wanted)
        or _claimed_away(session, run, wanted)
    )
    if blocked is not None:
        return blocked
    vault = vaults.of_project(session, service, run.project_id, vault_url(service, run.project_id))
    if vault.vault_uuid is None:
        return _NoVaultYet(vault)
    full = slots.reserve(session, run.id, wanted)
    if full is None:
        return _Plan(placed, missing, vault, wanted)
    if round_.waited(run) > round_.settings.max_overtaken:
        round_.kept |= {(slot.kind, slot.name) for slot in wanted}
    slot = (full.kind, full.name)
    said = f"slots of {full.kind} {full.name} are in use: {full.count} wanted, {full.limit} in all"
    return Wait(f"{full.kind}_busy", said, slot=slot, none_left=full.count == 1)


def _vault_service(session: Session, job: BackupJob) -> VaultService | None:
    allowed = vaults.services(session, job.project_id)
    return next((found for found in allowed if job.vault_service_id in (None, found.id)), None)


def _place_all(
    session: Session, round_: _Round, job: BackupJob, cloud: Cloud | None
) -> tuple[list[Placed], list[Wait]]:
    unowned = job.project_id == round_.settings.unowned_vms_project
    placed: list[Placed] = []
    missing: list[Wait] = []
    for member in members(session, job, unowned, cloud):
        if member.source == Source.HYPERVISOR:
            found = place(session, job.project_id, member, round_.alive, unowned, cloud)
        else:
            found = place_anywhere(member, round_.alive.values(), job.placement)
        (missing if isinstance(found, Wait) else placed).append(found)  # type: ignore[arg-type]
    if not placed and not missing:
        missing.append(Wait("no_vms", "its job means no VM at present"))
    return placed, missing


def _slots(
    round_: _Round, job: BackupJob, service: VaultService, placed: Sequence[Placed], own: Mapping[str, int]
) -> list[Slot]:
    wanted = [Slot("vm", each.member.vm_id) for each in placed]
    for host, there in _by_host(placed).items():
        wanted.append(Slot("host", host, there[0].capacity, min(len(there), there[0].capacity)))
    limit = own.get("concurrent_runs", round_.settings.max_runs_per_project)
    if limit >= 0:
        wanted.append(Slot("project", job.project_id, limit))
    if service.max_runs is not None:
        wanted.append(Slot("vault", service.id, service.max_runs))
    return wanted


def _by_host(placed: Iterable[Placed]) -> dict[str, list[Placed]]:
    found: dict[str, list[Placed]] = {}
    for each in placed:
        if each.host is not None:
            found.setdefault(each.host, []).append(each)
    return found


def _too_large(job: BackupJob, placed: Sequence[Placed]) -> Wait | None:
    """A group freezes together, so its members on a host are claimed together."""
    for host, there in _by_host(placed).items():
        if job.consistency_group and len(there) > there[0].capacity:
            least = f"{len(there)} VMs of the group are on host {host}, whose agent takes {there[0].capacity} at once"
            return Wait("group_too_large", least)
    return None


def _no_room(session: Session, round_: _Round, job: BackupJob, own: Mapping[str, int]) -> Wait | None:
    """It waits as for a vault that is away: once somebody, or retention, has made room it starts by itself."""
    settings, project = round_.settings, job.project_id
    may = room.most(own, room.Most(settings.max_runs, settings.max_stored_bytes))
    if may.stored_bytes >= 0 and project not in round_.stored:
        round_.stored[project] = usage.stored_bytes(session, project)
    short = room.shortage(session, job, may, round_.stored.get(project))
    if short is None:
        return None
    said = f"the limit of {short.what} of its project is {short.limit}; with this run it would be {short.wanted}"
    return Wait(f"{short.name}_reached", said)


def _vm_in_use(session: Session, run: BackupJobRun, placed: Sequence[Placed]) -> Wait | None:
    """One run per VM over all jobs: the commonest reason to wait, and one that says who."""
    ids = [each.member.vm_id for each in placed]
    mine = Reservation.kind == "vm", Reservation.name.in_(ids), Reservation.holder_id != run.id
    held = session.scalars(select(Reservation).where(*mine).order_by(Reservation.name)).first()
    if held is None:
        return None
    return Wait("vm_busy", f"VM {held.name} is in use by {held.holder_id}", slot=("vm", held.name), none_left=True)


def _claimed_away(session: Session, run: BackupJobRun, wanted: Iterable[Slot]) -> Wait | None:
    """Its agent has so much of what any can do that a group could not be claimed as a whole."""
    for slot in wanted:
        if slot.kind != "host":
            continue
        others = sum(holder != run.id for holder in slots.holders(session, "host", slot.name))
        claimed = tasks.held_of_anybodys(session, slot.name)
        if claimed and others + claimed + slot.count > slot.limit:
            said = f"host {slot.name} has {claimed} tasks of any host at work: {slot.count} wanted, {slot.limit} in all"
            return Wait("host_busy", said, slot=("host", slot.name))
    return None


def _kept(round_: _Round, wanted: Iterable[Slot]) -> Wait | None:
    for slot in wanted:
        if (slot.kind, slot.name) in round_.kept:
            kept = f"slots of {slot.kind} {slot.name} are kept for a run that has waited longer"
            return Wait("overtaken", kept, slot=(slot.kind, slot.name))
    return None


# -- what becomes of it -----------------------------------------------------------------------------


def _stay(session: Session, round_: _Round, run: BackupJobRun, wait: Wait) -> None:
    """It says why. What is not there will not be there at once: others come first."""
    values: dict[str, object] = {}
    if run.queued_reason != wait.document():
        values["queued_reason"] = wait.document()
    if wait.slot is None:
        values["not_before"] = now() + round(3 * round_.settings.interval * SECOND)
    if values:
        still = BackupJobRun.id == run.id, BackupJobRun.state == RunState.QUEUED
        rows.changed(session, update(BackupJobRun).where(*still).values(**values))


def _begin(session: Session, round_: _Round, run: BackupJobRun, job: BackupJob, plan: _Plan) -> None:
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


def _apart(job: BackupJob, plan: _Plan) -> list[str]:
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


def _told(session: Session, agents: Sequence[Service]) -> set[str]:
    """Hosts whose agents are to hear of tasks that any could do: for each task the least busy one."""
    told: dict[str, int] = {}
    waiting = Task.state == TaskState.READY, Task.host.is_(None), Task.not_before <= now()
    statement = select(Task).where(*waiting).order_by(Task.priority.desc(), Task.created_at).limit(_TOLD)
    for task in session.scalars(statement):
        able = [a for a in willing(agents, task.placement, task.needs) if a.load + told.get(a.host, 0) < a.capacity]
        if able:
            best = min(able, key=lambda a: ((a.load + told.get(a.host, 0)) / a.capacity, a.id))
            told[best.host] = told.get(best.host, 0) + 1
    return set(told)
