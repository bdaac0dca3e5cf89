"""Processes of the service: who is there, what it can, which VMs it sees."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, and_, delete, exists, false, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import SeenVm, Service, Task
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.db.transition import transition
from raksha.errors import RowNotFound, StillNeeded
from raksha.states import ServiceKind, ServiceState, TaskKind, TaskState

NOUN = "service"

COLUMNS: Columns = {
    "id": Service.id,
    "kind": Service.kind,
    "name": Service.name,
    "host": Service.host,
    "state": Service.state,
    "created_at": Service.started_at,
    "heartbeat_at": Service.heartbeat_at,
}
VM_COLUMNS: Columns = {"id": SeenVm.vm_id, "name": SeenVm.name, "power": SeenVm.power, "created_at": SeenVm.seen_at}


class Sight(Struct, frozen=True):
    """A VM as an agent sees it."""

    vm_id: str
    name: str
    power: str
    project_id: str | None = None
    tags: tuple[str, ...] = ()
    hints: dict[str, str] = {}
    disks: tuple[Any, ...] = ()
    #: why it cannot be protected
    refusal: Any = None


def register(session: Session, kind: ServiceKind, name: str, *, instance: str, **facts: Any) -> Service:
    """A process has started. It keeps its id, and what its operator said, over restarts. `facts`: columns."""
    mine = Service.kind == kind, Service.name == name
    fresh = {"instance": instance, "load": 0, **facts}
    service = Service(kind=kind, name=name, **fresh)
    if rows.inserted(session, service):
        return service
    rows.changed(session, update(Service).where(*mine).values(**fresh, started_at=now(), heartbeat_at=now()))
    rows.reread(session, Service)
    return rows.one(session, select(Service).where(*mine), NOUN, name)


def heartbeat(session: Session, id: str, instance: str, **facts: Any) -> Service:
    """It is alive. `facts`: `load`, `capacity`, `capabilities`. The row says what its operator wants.

    Raises `RowNotFound`: it must register (again). `StillNeeded` if a later start of it has registered.
    """
    mine = Service.id == id, Service.instance == instance
    if rows.changed(session, update(Service).where(*mine).values(heartbeat_at=now(), **facts)) == 0:
        found = get(session, id)
        raise StillNeeded(noun=NOUN, id=id, found=found.state, detail=f"it was started again as {found.instance}")
    rows.reread(session, Service)
    return get(session, id)


def get(session: Session, id: str) -> Service:
    """Raises `RowNotFound`."""
    return rows.one(session, select(Service).where(Service.id == id), NOUN, id)


def listed(session: Session, wanted: Wanted, where: Sequence[ColumnElement[bool]] = ()) -> Page[Service]:
    """Raises `SortKeyUnknown`, `MarkerUnknown`."""
    return page(session, select(Service).where(*where), COLUMNS, wanted)


def everyone(session: Session) -> list[Service]:
    return list(session.scalars(select(Service).order_by(Service.kind, Service.name)))


def alive(session: Session, kind: ServiceKind, within: float) -> list[Service]:
    """Services of a kind that have given a heartbeat in the last `within` seconds, the least busy first."""
    recent = Service.heartbeat_at > now() - literal(round(within * SECOND))
    return list(session.scalars(select(Service).where(Service.kind == kind, recent).order_by(Service.load, Service.id)))


def want(session: Session, id: str, state: ServiceState, reason: str | None) -> None:
    """What its operator wants of it, and why; again is no harm. Raises `RowNotFound`, `StateConflict`."""
    if get(session, id).state == state:
        rows.changed(session, update(Service).where(Service.id == id).values(state_reason=reason))
        rows.reread(session, Service)
    else:
        transition(session, Service, id, state, state_reason=reason)


def silent(session: Session, seconds: float, limit: int) -> list[Service]:
    """Services without a heartbeat for so many seconds."""
    long_ago = Service.heartbeat_at < now() - literal(round(seconds * SECOND))
    return list(session.scalars(select(Service).where(long_ago).order_by(Service.heartbeat_at).limit(limit)))


def remove(session: Session, id: str, silent_for: float) -> None:
    """Forget a service that has been silent for so many seconds. Raises `RowNotFound`, `StillNeeded`."""
    silent = Service.heartbeat_at < now() - literal(round(silent_for * SECOND))
    if rows.changed(session, delete(Service).where(Service.id == id, silent)) == 0:
        raise StillNeeded(noun=NOUN, id=id, found=get(session, id).state, detail="it is alive")


# -- VMs --------------------------------------------------------------------------------------------


def see(session: Session, service_id: str, sights: Iterable[Sight]) -> None:
    """All VMs that an agent sees now; what it saw before and does not name is gone."""
    wanted = {sight.vm_id: sight for sight in sights}
    known = {vm.vm_id: vm for vm in session.scalars(select(SeenVm).where(SeenVm.service_id == service_id))}
    gone = sorted(known.keys() - wanted.keys())
    if gone:
        rows.changed(session, delete(SeenVm).where(SeenVm.service_id == service_id, SeenVm.vm_id.in_(gone)))
        for id in gone:
            session.expunge(known[id])
    for id, sight in wanted.items():
        vm = known.get(id) or SeenVm(service_id=service_id, vm_id=id)
        vm.name, vm.power, vm.project_id = sight.name, sight.power, sight.project_id
        vm.tags, vm.hints, vm.disks = list(sight.tags), dict(sight.hints), list(sight.disks)
        vm.refusal = sight.refusal
        session.add(vm)
    session.flush()
    rows.changed(session, update(SeenVm).where(SeenVm.service_id == service_id).values(seen_at=now()))


def agents_of(session: Session, vm_id: str) -> list[tuple[Service, SeenVm]]:
    """Agents that see a VM: first where it runs, then who saw it last."""
    statement = select(Service, SeenVm).join(SeenVm, SeenVm.service_id == Service.id).where(SeenVm.vm_id == vm_id)
    found = [(service, vm) for service, vm in session.execute(statement)]
    return sorted(found, key=lambda pair: (pair[1].power != "running", -pair[1].seen_at, pair[0].id))


def vms(
    session: Session,
    project_id: str | None,
    wanted: Wanted,
    where: Sequence[ColumnElement[bool]] = (),
    *,
    unowned: bool = False,
) -> Page[SeenVm]:
    """VMs of a project (None: all), each as its best agent sees it (see `agents_of`). `unowned`: those of no project
    are the project's as well. Raises `SortKeyUnknown`, `MarkerUnknown`."""
    return page(session, _best(project_id, unowned).where(*where), VM_COLUMNS, wanted)


def all_vms(session: Session, project_id: str, *, unowned: bool = False, owned: bool = True) -> list[SeenVm]:
    """As `vms`, the whole list. `owned`: with those that agents say are the project's."""
    return list(session.scalars(_best(project_id, unowned, owned)))


def _best(project_id: str | None, unowned: bool, owned: bool = True) -> Select[SeenVm]:
    other = aliased(SeenVm)
    running, other_running = SeenVm.power == "running", other.power == "running"
    later = or_(
        other.seen_at > SeenVm.seen_at, and_(other.seen_at == SeenVm.seen_at, other.service_id < SeenVm.service_id)
    )
    better = or_(and_(other_running, ~running), and_(other_running == running, later))
    best = ~exists().where(other.vm_id == SeenVm.vm_id, *_visible(other, project_id, unowned, owned), better)
    return select(SeenVm).where(*_visible(SeenVm, project_id, unowned, owned), best)


def vm(session: Session, project_id: str | None, vm_id: str, *, unowned: bool = False, owned: bool = True) -> SeenVm:
    """Where a VM was seen best (see `agents_of`). Raises `RowNotFound`, also for that of another project.

    `owned`: agents' word counts that it is the project's.
    """
    for _service, seen in agents_of(session, vm_id):
        mine = (owned and seen.project_id == project_id) or (unowned and seen.project_id is None)
        if project_id is None or mine:
            return seen
    raise RowNotFound(noun="VM", id=vm_id)


def visible(
    session: Session, project_id: str, vm_ids: Collection[str], *, unowned: bool = False, owned: bool = True
) -> set[str]:
    """Those of some VMs that a project may protect. `owned`: as in `vm`."""
    mine = _visible(SeenVm, project_id, unowned, owned)
    return set(session.scalars(select(SeenVm.vm_id).where(SeenVm.vm_id.in_(vm_ids), *mine)))


def _visible(noun: Any, project_id: str | None, unowned: bool, owned: bool = True) -> tuple[ColumnElement[bool], ...]:
    if project_id is None:
        return ()
    mine: ColumnElement[bool] = noun.project_id == project_id if owned else false()
    return (or_(mine, noun.project_id.is_(None)) if unowned else mine,)


def drained(session: Session) -> list[Service]:
    """Services that are draining and hold nothing any more: they can be called DRAINED."""
    idle = Service.state == ServiceState.DRAINING, Service.load == 0
    # what an agent has captured is its to let go
    held = Task.state == TaskState.CLAIMED, Task.service_id == Service.id
    to_end = Task.state == TaskState.READY, Task.kind == TaskKind.FINISH, Task.host == Service.host
    mine = exists().where(*held) | (exists().where(*to_end) & (Service.kind == ServiceKind.AGENT))
    return list(session.scalars(select(Service).where(*idle, ~mine)))
