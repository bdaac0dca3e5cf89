"""Consistency groups: real guests, frozen by their agents, captured together over the barrier of the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raksha.db import groups
from raksha.db.models import Barrier, BarrierMember
from raksha.states import BarrierState, MemberState, RunState
from tests.bed import Bed, check_records
from tests.bed.bed import MIB
from tests.bed.machine import Machine
from tests.functional.agent_kit import Service, service_on, until
from tests.functional.local_kit import restored
from tests.functional.test_local_groups import records_of

pytestmark = pytest.mark.bed


@pytest.fixture
def service(bed: Bed, tmp_path: Path) -> Iterator[Service]:
    with service_on(bed, tmp_path, task_lease=6.0) as made:
        yield made


def two_vms(bed: Bed, **second: Any) -> tuple[Machine, Machine]:
    one = bed.machine([bed.raw("one-a", 32 * MIB), bed.raw("one-b", 32 * MIB)], name="one", mode="fs", pause=5000)
    two = bed.machine([bed.raw("two-a", 32 * MIB)], name="two", mode="fs", pause=5000, **second)
    for vm in (one, two):
        vm.boot()
    return one, two


def group_of(service: Service, run: str) -> tuple[Barrier, list[BarrierMember]]:
    with service.database.reading() as session:
        group = groups.of_run(session, run)
        assert group is not None
        return group, groups.members(session, group.id)


def assert_goes_on(*vms: Machine) -> None:
    """Not frozen: what they write comes to their disks."""
    for vm in vms:
        assert vm.agent("guest-fsfreeze-status") == "thawed"
        vm.wait_for_records(3)


def summaries(service: Service, run: str) -> dict[str, dict[str, Any]]:
    found = next(each for each in service.reader.good("list").json["runs"] if each["backupjobrun"] == run)
    return {vm["vm"]: vm for vm in found["vms"]}


def test_two_vms_at_one_instant(bed: Bed, service: Service, tmp_path: Path) -> None:
    vms = two_vms(bed)
    service.agent()
    job = service.job(*vms, quiesce="require")
    for _ in range(2):
        acknowledged = {vm.uuid: vm.wait_for_records(10) for vm in vms}
        marks = {vm.uuid: vm.mark() for vm in vms}
        run = service.queue(job)
        row = service.ended(run)
        assert row.group_consistent is True and row.skew_seconds is not None
        group, members = group_of(service, run)
        assert group.state == BarrierState.DONE
        until(lambda run=run: all(m.state == MemberState.THAWED for m in group_of(service, run)[1]), "both said so")
        for member in group_of(service, run)[1]:
            assert member.frozen_at < member.captured_at < member.thawed_at
            assert 0 < member.clock_error_seconds < 2
        # nobody took a snapshot before all stood still, and nobody went on before all were taken
        members = group_of(service, run)[1]
        slack = round(2e6 * max(member.clock_error_seconds for member in members))
        assert max(m.frozen_at for m in members) < min(m.captured_at for m in members) + slack
        assert max(m.captured_at for m in members) < min(m.thawed_at for m in members) + slack
        for vm in vms:
            summary = summaries(service, run)[vm.uuid]
            assert summary["consistency"] == "quiesced" and 0 < summary["frozen_seconds"] < 8
            vm.wait_for("HOOK freeze", marks[vm.uuid])
            vm.wait_for("HOOK thaw", marks[vm.uuid])
        assert_goes_on(*vms)
        for vm in vms:
            disks = restored(service.reader, run, tmp_path / "out", vm.uuid)
            check_records([records_of(disk, clean=True) for disk in disks.values()], acknowledged[vm.uuid])


def test_who_is_not_frozen_must_stand_still(bed: Bed, service: Service) -> None:
    """All are captured together; the run says whether a guest went on writing."""
    one, two = two_vms(bed)
    service.agent()
    for quiesce, paused, consistent in (("never", False, False), ("auto", True, True)):
        job = service.job(one, two, quiesce=quiesce)
        if paused:
            two.domain.suspend()
        try:
            run = service.queue(job)
            row = service.ended(run)
        finally:
            if paused:
                two.domain.resume()
        assert (row.state, row.group_consistent) == (RunState.AVAILABLE, consistent)
        group, members = group_of(service, run)
        assert group.state == BarrierState.DONE and row.skew_seconds < 2
        frozen = {member.vm_id for member in members if member.frozen_at is not None}
        assert frozen == ({one.uuid} if paused else set())
        told = {vm: each["consistency"] for vm, each in summaries(service, run).items()}
        assert told == {one.uuid: "quiesced" if paused else "crash", two.uuid: "paused" if paused else "crash"}
        assert_goes_on(one, two)


@pytest.mark.parametrize("on_failure", ["abort", "degrade"])
def test_one_that_cannot_be_frozen(bed: Bed, service: Service, tmp_path: Path, on_failure: str) -> None:
    one, two = two_vms(bed)
    service.agent()
    job = service.job(one, two, quiesce="require", on_vm_failure=on_failure)
    acknowledged = one.wait_for_records(5)
    two.domain.suspend()
    try:
        run = service.queue(job)
        row = service.ended(run, RunState.ERROR if on_failure == "abort" else RunState.AVAILABLE)
    finally:
        two.domain.resume()
    assert group_of(service, run)[0].state == BarrierState.FAILED
    assert_goes_on(one, two)
    errors = {task.vm_id: (task.error or {}).get("code") for task in service.tasks(run)}
    assert errors[two.uuid] == "quiesce_failed"
    if on_failure == "abort":
        assert service.reader.runs() == []
        return
    assert row.group_consistent is False and errors[one.uuid] is None
    assert set(summaries(service, run)) == {one.uuid}
    disks = restored(service.reader, run, tmp_path / "out", one.uuid)
    check_records([records_of(disk, clean=True) for disk in disks.values()], acknowledged)


def test_the_bus_goes_while_a_guest_is_frozen(bed: Bed, service: Service) -> None:
    """It is thawed within its time, with nobody there who could tell."""
    one, two = two_vms(bed, freeze_delay=4)
    service.agent()
    job = service.job(one, two, quiesce="require")
    since = one.mark()
    run = service.queue(job)
    one.wait_for("HOOK freeze", since)
    service.stop_scheduler()
    began = time.monotonic()
    one.wait_for("HOOK thaw", since, timeout=20)
    assert time.monotonic() - began < service.host.freeze_deadline + 2
    # the other one was frozen later, as it takes its time over that
    until(lambda: two.agent("guest-fsfreeze-status") == "thawed", "it is thawed", service.host.freeze_deadline + 6)
    assert_goes_on(one, two)
    service.start_scheduler()
    service.ended(run, RunState.ERROR)
    assert group_of(service, run)[0].state == BarrierState.FAILED
    assert service.reader.runs() == []
    again = service.queue(job)
    service.ended(again)
    assert_goes_on(one, two)
