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
from collections.abc import Sequence
from functools import partial

from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import jobs, rows, runs, services, slots, usage, vaults
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJob, BackupJobRun, Service, Task, Vault, VaultService
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable, RakshaError, RowNotFound, StateConflict, TrustBroken
from raksha.scheduler import advance, apart
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.placement import Placed, Wait, members, place, place_anywhere, willing
from raksha.scheduler.places import make_vault, vault_url
from raksha.scheduler.round import Round
from raksha.scheduler.starting import Plan, begin
from raksha.scheduler.suspension import suspend
from raksha.scheduler.whose import Asked, Cloud
from raksha.states import JobState, RunState, ServiceKind, Source, TaskState

_log = logging.getLogger(__name__)

#: runs looked at in one round
LOOKED_AT = 1000
_NO_VAULT = Wait("no_vault", "there is no vault that its project may use")
#: tasks that any agent can do of which agents are told in one round
_TOLD = 100


class Dispatched(Struct, frozen=True):
    """What one round did."""

    started: int
    #: runs that stay in the queue, as far as they were looked at
    waiting: int
    #: whose agents have something to claim
    hosts: frozenset[str]


class _NoVaultYet(Struct, frozen=True):
    """It is to be made first."""

    vault: Vault


def dispatch(database: Database, settings: SchedulerSettings, access: Access = ENVIRONMENT) -> Dispatched:
    """One round over the queue."""
    with database.reading() as session:
        found = runs.queued(session, LOOKED_AT)
        agents = services.alive(session, ServiceKind.AGENT, settings.agent_timeout)
        asked = Asked(access, others=settings.libvirt_vms)
        round_ = Round(settings, rows.clock(session), {agent.id: agent for agent in agents}, asked)
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


def _started(database: Database, round_: Round, run: BackupJobRun, access: Access) -> Wait | set[str | None]:
    """Makes the vault as well, where there is none."""
    run_id = run.id
    if (refused := _not_delegated(database, round_, run, access)) is not None:
        return database.run(partial(_refuse, round_=round_, run_id=run_id, error=refused))
    cloud = _asked(database, round_, run)
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


def _not_delegated(database: Database, round_: Round, run: BackupJobRun, access: Access) -> RakshaError | None:
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


def _asked(database: Database, round_: Round, run: BackupJobRun) -> Cloud | Wait | None:
    """What Nova says of the job's VMs. None: there is none to ask. Not asked for a run that has to wait anyway."""
    with database.reading() as session:
        job = jobs.get(session, None, run.backupjob_id)
        if job.state in (JobState.SUSPENDED, JobState.DELETING):
            return None
        there = jobs.members(session, [job.id])[job.id]
        named = frozenset(vm.vm_id for vm in there if vm.source == Source.HYPERVISOR)
        if round_.asked.needs_nova(job, named):
            if (service := _vault_service(session, job)) is None:
                return _NO_VAULT
            needed = () if job.on_vm_failure == "degrade" else [vm.vm_id for vm in there]
            if (wait := apart.at_once(session, round_, run, job, service, needed)) is not None:
                return wait
    try:
        return round_.asked.of(job, named)
    except TrustBroken as error:  # it went just now: the next round says so of the job
        return Wait(error.code, str(error))


def _refuse(session: Session, round_: Round, run_id: str, error: RakshaError) -> Wait | set[str | None]:
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
    session: Session, round_: Round, run_id: str, cloud: Cloud | None = None, unmade: Wait | None = None
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
    begin(session, round_, run, job, plan)
    return {placed.host for placed in plan.placed}


def _hold(session: Session, round_: Round, run_id: str, wait: Wait) -> Wait | set[str | None]:
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
    session: Session, round_: Round, run: BackupJobRun, job: BackupJob, cloud: Cloud | None
) -> Plan | Wait | _NoVaultYet:
    """What the run needs, all its slots reserved; or why not, with nothing reserved."""
    if job.state in (JobState.SUSPENDED, JobState.DELETING):
        return Wait("job_not_active", f"its job is {job.state}")
    service = _vault_service(session, job)
    if service is None:
        return _NO_VAULT
    placed, missing = _place_all(session, round_, job, cloud)
    if missing and not (placed and job.on_vm_failure == "degrade"):
        # first what no wait helps against
        return min(missing, key=lambda wait: not wait.final)
    if round_.waited(run) <= round_.settings.max_wait and (hoped := [wait for wait in missing if not wait.final]):
        return hoped[0]
    own = usage.limits(session, job.project_id)
    wanted = apart.wanted_slots(round_, job, service, placed, own)
    blocked = (
        apart.too_large(job, placed)
        or apart.no_room(session, round_, job, own)
        or apart.vm_in_use(session, run, [each.member.vm_id for each in placed])
        or apart.kept(round_, wanted)
        or apart.claimed_away(session, run, wanted)
    )
    if blocked is not None:
        return blocked
    vault = vaults.of_project(session, service, run.project_id, vault_url(service, run.project_id))
    if vault.vault_uuid is None:
        return _NoVaultYet(vault)
    full = slots.reserve(session, run.id, wanted)
    if full is None:
        return Plan(placed, missing, vault, wanted)
    if round_.waited(run) > round_.settings.max_overtaken:
        round_.kept |= {(slot.kind, slot.name) for slot in wanted}
    return apart.busy(full)


def _vault_service(session: Session, job: BackupJob) -> VaultService | None:
    allowed = vaults.services(session, job.project_id)
    return next((found for found in allowed if job.vault_service_id in (None, found.id)), None)


def _place_all(session: Session, round_: Round, job: BackupJob, cloud: Cloud | None) -> tuple[list[Placed], list[Wait]]:
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


# -- what becomes of it -----------------------------------------------------------------------------


def _stay(session: Session, round_: Round, run: BackupJobRun, wait: Wait) -> None:
    """It says why. What is not there will not be there at once: others come first."""
    values: dict[str, object] = {}
    if run.queued_reason != wait.document():
        values["queued_reason"] = wait.document()
    if wait.slot is None:
        values["not_before"] = now() + round(3 * round_.settings.interval * SECOND)
    if values:
        still = BackupJobRun.id == run.id, BackupJobRun.state == RunState.QUEUED
        rows.changed(session, update(BackupJobRun).where(*still).values(**values))


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
