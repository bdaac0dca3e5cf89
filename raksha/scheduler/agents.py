"""What agents say of themselves: that they have started, that they are alive, what they see."""

from __future__ import annotations

import msgspec
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import services
from raksha.db.session import Database
from raksha.states import ServiceKind
from raksha.tasks import Heartbeat, Register, Registered, SeenVm, Wanted


def register(database: Database, settings: SchedulerSettings, said: Register) -> Registered:
    """Again for the same start: no harm. Heartbeats and claims of an earlier start are refused from now on."""

    def work(session: Session) -> Registered:
        service = services.register(
            session, ServiceKind.AGENT, said.host,
            host=said.host, instance=said.instance, zone=said.zone, version=said.version,
            capacity=said.capacity, capabilities=said.capabilities,
        )  # fmt: skip
        return Registered(
            service_id=service.id,
            state=service.state,
            heartbeat_seconds=settings.heartbeat_interval,
            lease_seconds=settings.task_lease,
        )

    return database.run(work)


def heartbeat(database: Database, said: Heartbeat) -> Wanted:
    """Raises `RowNotFound`: register (again). `StillNeeded`: a later start of this agent has registered."""

    def work(session: Session) -> Wanted:
        # changes the agent's row first: of two heartbeats at once, the second sees what the first has seen
        service = services.heartbeat(session, said.service_id, said.instance, load=said.load)
        if said.vms is not None:
            services.see(session, service.id, map(_sight, said.vms))
        return Wanted(state=service.state)

    return database.run(work)


def _sight(vm: SeenVm) -> services.Sight:
    return services.Sight(
        vm_id=vm.vm,
        name=vm.name,
        power=vm.power,
        project_id=vm.project_id,
        tags=vm.tags,
        hints=vm.hints,
        disks=tuple(msgspec.to_builtins(vm.disks)),
        refusal=vm.refusal,
    )
