"""What tables show of jobs, and of VMs: put together from several answers of the API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from openstack_dashboard.api import base

from raksha.client import Client, errors
from raksha.client.records import Job, Run, Vm
from raksha_dashboard.api import client
from raksha_dashboard.words import RESTORABLE


class JobRow(Struct, frozen=True):
    """A job with what its runs say."""

    job: Job
    runs: tuple[Run, ...]
    vm_names: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def last(self) -> Run | None:
        """The newest one."""
        return self.runs[0] if self.runs else None

    @property
    def points(self) -> tuple[Run, ...]:
        """Those that can be restored, newest first."""
        return tuple(run for run in self.runs if run.state in RESTORABLE)

    @property
    def stored(self) -> int:
        return sum(run.bytes_stored for run in self.points)

    @property
    def under_way(self) -> Run | None:
        return next((run for run in self.runs if not run.ended), None)


class VmRow(Struct, frozen=True):
    """A VM of the project, and who protects it since when."""

    vm: Vm
    jobs: tuple[Job, ...]
    last_success: datetime | None

    @property
    def id(self) -> str:
        return self.vm.id

    @property
    def name(self) -> str:
        return self.vm.name

    @property
    def active(self) -> tuple[Job, ...]:
        """Those that run by themselves."""
        return tuple(job for job in self.jobs if job.state == "active" and job.schedule is not None)


def vm_names(request: Any) -> dict[str, str]:
    """Name of each VM by its id."""
    return {vm.id: vm.name for vm in client(request).vms.list()}


def runs(service: Client, job_id: str) -> tuple[Run, ...]:
    """All of a job, newest first."""
    return tuple(service.runs.list(job_id, sort="created_at:desc"))


def row(service: Client, job: Job, names: dict[str, str]) -> JobRow:
    shown = [names.get(vm.id, vm.id[:8]) for vm in job.vms] + [f"volume {volume.id[:8]}" for volume in job.volumes]
    return JobRow(job, runs(service, job.id), tuple(shown))


def vms(request: Any) -> list[VmRow]:
    """Each with its jobs, and when a copy of it was last taken."""
    service = client(request)
    jobs = list(service.jobs.list())
    last: dict[str, datetime] = {}
    for job in jobs:
        for run in newest_points(service, job):
            for part in run.vms or ():
                if part.taken_at is not None and part.state == "stored":
                    last[part.vm_id] = max(part.taken_at, last.get(part.vm_id, part.taken_at))
    return [VmRow(vm, tuple(_protecting(vm, jobs)), last.get(vm.id)) for vm in service.vms.list()]


def newest_points(service: Client, job: Job) -> Sequence[Run]:
    """The newest restore point, with its VMs."""
    found = service.runs.list(job.id, state=tuple(RESTORABLE), sort="created_at:desc", limit=1)
    shown = []
    for run in found:
        try:
            shown.append(service.runs.get(job.id, run.id))
        except errors.NotFound:
            # it went between the two answers
            continue
    return shown


def _protecting(vm: Vm, jobs: Iterable[Job]) -> Iterable[Job]:
    for job in jobs:
        wanted = job.vm_selector
        by_name = any(each.id == vm.id for each in job.vms)
        selected = wanted is not None and (
            set(wanted.tags) <= set(vm.tags) and wanted.metadata.items() <= vm.metadata.items()
        )
        if by_name or selected:
            yield job


def service_there(request: Any) -> bool:
    return bool(base.is_service_enabled(request, "data-protection"))
