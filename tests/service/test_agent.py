"""The agent of one host, asked by a real scheduler: backups, what becomes of them, restores, and a bus that is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from raksha.db import runs, tasks
from raksha.db.models import Task
from raksha.db.transition import transition
from raksha.errors import BusUnavailable
from raksha.rpc import Bus, Caller
from raksha.states import BackupKind, RunState, TaskKind, TaskState
from tests.bed import Bed
from tests.bed.databases import PROJECT
from tests.functional.agent_kit import HOST, Service, service_on, until
from tests.functional.local_kit import two_disks, write_noise
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.qemu_img import qemu_img

pytestmark = pytest.mark.bed


@pytest.fixture
def service(bed: Bed, tmp_path: Path) -> Iterator[Service]:
    with service_on(bed, tmp_path) as made:
        yield made


def how(service: Service, run_id: str) -> dict[str, tuple[str, str, str | None]]:
    (vm,) = next(run for run in service.reader.good("list").json["runs"] if run["backupjobrun"] == run_id)["vms"]
    return {disk["resource"]: (disk["kind"], disk["mode"], disk["reason"]) for disk in vm["resources"]}


def all_disks(*told: str | None) -> dict[str, tuple[str | None, ...]]:
    return dict.fromkeys(("vda", "vdb"), told)


def layers(guest: Guest) -> dict[str, int]:
    """Number of layers of ours on each disk."""
    found = guest.sources(inactive=not guest.machine.running)
    return {target: sum(".raksha-" in path for path in paths) for target, paths in found.items()}


def as_raw(path: str, into: Path) -> bytes:
    copy = into / "as.raw"
    qemu_img("convert", "-f", "raw" if path.endswith(".raw") else "qcow2", "-O", "raw", path, copy)
    content = copy.read_bytes()
    copy.unlink()
    return content


# -- backups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["overlay", "pull"])
def test_full_and_increments(bed: Bed, service: Service, engine: str) -> None:
    guest = two_disks(bed)
    service.agent()
    job = service.job(guest, engine=engine, max_parallel_disks=2)
    first = service.backup(job, guest)
    guest.write("vda", 3 * MIB, 70 * KIB, 0x33)
    second = service.backup(job, guest)
    guest.zero("vda", 64 * KIB, 64 * KIB)
    guest.write("vdb", 2 * MIB, 5 * KIB, 0x34)
    third = service.backup(job, guest)
    assert how(service, first) == all_disks("full", "full", "first_run")
    for run in (second, third):
        found = how(service, run)
        assert found["vda"] == ("incremental", "delta", None)
        assert found["vdb"] == (("incremental", "delta", None) if engine == "overlay" else
                                ("incremental", "compare", "no_bitmap_possible"))  # fmt: skip
    service.assert_all_hold(guest)
    # what is older than the last run was merged
    assert layers(guest) == dict.fromkeys(("vda", "vdb"), 1 if engine == "overlay" else 0)
    assert [task.order["number"] for run in (first, second, third) for task in service.tasks(run, TaskKind.FINISH)] == [
        1, 2, 3,
    ]  # fmt: skip
    (vm,) = service.reader.good("list").json["runs"][-1]["vms"]
    assert (vm["vm"], vm["engine"], vm["consistency"]) == (guest.uuid, engine, "crash")


def test_a_full_one_that_was_asked_for_sends_nothing_again(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    service.agent()
    job = service.job(guest)
    service.backup(job, guest)
    before = service.reader.segments()
    second = service.backup(job, guest, BackupKind.FULL)
    assert how(service, second) == all_disks("full", "full", "asked_for_full")
    (task,) = service.tasks(second)
    new = [path.name for path in service.reader.segments() if path not in before]
    # tables of the images alone, named by the claim
    assert new and all(name.endswith(f"-{task.id}.1") for name in new)
    stored = {disk["resource"]: disk["volume"]["sent"] for vm in
              service.reader.good("list").json["runs"][-1]["vms"] for disk in vm["resources"]}  # fmt: skip
    assert max(stored.values()) < 400 * KIB
    service.assert_all_hold(guest)


def test_no_faster_than_allowed_and_progress_is_told(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    write_noise(guest, "vdb", 0, 4 * MIB)
    service.agent()
    job = service.job(guest, bandwidth_limit=1 * MIB)
    began = time.monotonic()
    truth = guest.frozen_model()
    run = service.queue(job)
    (task,) = until(lambda: service.tasks(run), "its task is there")
    seen = until(lambda: (service.tasks(run)[0].progress or {}).get("disks"), "progress is told")
    assert {disk["resource"]: disk["size"] for disk in seen} == {"vda": 4 * MIB, "vdb": 4 * MIB}
    service.ended(run)
    service.truth[run] = truth
    assert time.monotonic() - began > 2.5, "4 MiB at 1 MiB a second, of which a second is given in advance"
    service.assert_all_hold(guest)
    assert task.epoch <= 1


# -- restores, verification, release ----------------------------------------------------------------


def test_restored_as_a_new_vm_and_as_files(bed: Bed, service: Service, tmp_path: Path) -> None:
    guest = two_disks(bed)
    service.agent()
    job = service.job(guest)
    service.backup(job, guest)
    guest.write("vda", 2 * MIB, 70 * KIB, 0x44)
    run = service.backup(job, guest)
    guest.write("vda", 2 * MIB, 70 * KIB, 0x55)
    name = f"{bed.directory.name}-again"
    restore = service.restore(run, guest, kind="domain", name=name)
    result = service.restored(restore).result
    assert (result["name"], {disk["disk"] for disk in result["disks"]}) == (name, {"vda", "vdb"})
    for disk in result["disks"]:
        assert Path(disk["path"]).is_relative_to(service.restores)
        assert as_raw(disk["path"], tmp_path) == service.truth[run][disk["disk"]]
    domain = guest.machine.connection.lookupByName(name)
    try:
        assert domain.UUIDString() == result["vm"]
        domain.create()
        domain.destroy()
    finally:
        domain.undefine()
    into = service.restores / "files"
    into.mkdir()
    target = {"kind": "files", "directory": str(into), "format": "raw", "disks": ["vdb"]}
    (disk,) = service.restored(service.restore(run, guest, **target)).result["disks"]
    assert Path(disk["path"]).parent == into and Path(disk["path"]).read_bytes() == service.truth[run]["vdb"]


def test_what_is_made_is_told_before_it_is_made(bed: Bed, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is made outside of the directories that the host allows."""
    guest = two_disks(bed)
    service.agent()
    run = service.backup(service.job(guest), guest)
    outside = bed.directory / "outside"
    outside.mkdir()
    task = service.restored(service.restore(run, guest, kind="files", directory=str(outside)), TaskState.ERROR)
    assert task.error["code"] == "target_unusable" and list(outside.iterdir()) == []
    (service.restores / "way").symlink_to(outside)
    elsewhere = service.restore(run, guest, kind="files", directory=str(service.restores / "way"))
    assert service.restored(elsewhere, TaskState.ERROR).error["code"] == "target_unusable"
    task = service.restored(service.restore(run, guest, kind="moon"), TaskState.ERROR)
    assert task.error["code"] == "bad_argument"
    restore = service.restore(run, guest, kind="files")
    service.restored(restore)
    made = service.made(restore)
    assert {each["kind"] for each in made} == {"file"} and {each["host"] for each in made} == {HOST}
    assert all(Path(each["path"]).exists() for each in made)


def test_in_place(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    service.agent()
    job = service.job(guest)
    run = service.backup(job, guest)
    guest.write("vda", 0, 1 * MIB, 0x66)
    guest.write("vdb", 0, 1 * MIB, 0x67)
    task = service.restored(service.restore(run, guest, kind="in_place"), TaskState.ERROR)
    assert task.error["code"] == "vm_busy"
    assert layers(guest) == {"vda": 1, "vdb": 1}, "a refusal changes nothing"
    guest.off()
    service.restored(service.restore(run, guest, kind="in_place"))
    assert layers(guest) == {"vda": 0, "vdb": 0}
    for target, content in service.truth[run].items():
        guest.model[target][:] = content
    guest.start()
    guest.write("vda", 3 * MIB, 8 * KIB, 0x68)
    after = service.backup(job, guest)
    assert how(service, after) == all_disks("incremental", "compare", "no_tracker")
    service.assert_all_hold(guest)
    left = [path.name for path in bed.directory.iterdir() if "raksha-before" in path.name or "restored" in path.name]
    assert left == []


def task_for(service: Service, kind: TaskKind, order: dict[str, Any], run_id: str | None = None) -> str:
    """A task as a scheduler makes it."""

    def work(session: Any) -> str:
        vault = service.tasks(run_id)[0].vault_id if run_id else None
        task = tasks.add(session, kind=kind, project_id=PROJECT, host=HOST, order=order, vault_id=vault)
        transition(session, Task, task.id, TaskState.READY)
        return str(task.id)

    return str(service.database.run(work))


def ended_task(service: Service, task_id: str) -> Task:
    def look() -> Task | None:
        with service.database.reading() as session:
            task = tasks.get(session, task_id)
            return task if task.state in tasks.TERMINAL else None

    found: Task = until(look, "the task ends")
    return found


def test_verified_and_released(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    service.agent()
    job = service.job(guest)
    run = service.backup(job, guest)
    copies = [
        {"key": {"backupjob": job, "backupjobrun": run, "vm": guest.uuid, "resource": disk}, "size": 1, "number": 1}
        for disk in ("vda", "vdb")
    ]
    order = {"type": "verify", "copies": copies, "data": True}
    task = ended_task(service, task_for(service, TaskKind.VERIFY, order, run))
    assert (task.state, len(task.result["sound"]), task.result["findings"]) == (TaskState.DONE, 2, [])
    # one byte of vdb's data
    (victim,) = [path for path in service.reader.segments() if path.stat().st_size > 512][:1]
    victim.chmod(0o600)
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(bytes(content))
    task = ended_task(service, task_for(service, TaskKind.VERIFY, order, run))
    assert task.state == TaskState.DONE and len(task.result["sound"]) < 2 and task.result["findings"]
    task = ended_task(service, task_for(service, TaskKind.RELEASE, {"type": "release", "vm": guest.uuid}))
    assert task.state == TaskState.DONE and layers(guest) == {"vda": 0, "vdb": 0}
    guest.write("vda", 0, 4 * KIB, 0x12)


# -- what goes wrong --------------------------------------------------------------------------------


def slow_run(service: Service, guest: Guest) -> tuple[str, str]:
    """A run of some seconds that is storing now; and its job."""
    write_noise(guest, "vdb", 0, 4 * MIB)
    job = service.job(guest, bandwidth_limit=512 * KIB)
    service.truth_of_next = guest.frozen_model()
    run = service.queue(job)
    until(lambda: any(disk["sent"] for disk in progress_of(service, run)), "it stores")
    return run, job


def progress_of(service: Service, run: str) -> list[dict[str, int]]:
    found = service.tasks(run)
    return list((found[0].progress or {}).get("disks", ())) if found else []


def test_cancelled_while_it_stores(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    service.agent()
    run, job = slow_run(service, guest)
    service.database.run(lambda s: runs.request_cancel(s, run))
    service.ended(run, RunState.CANCELLED)
    assert service.tasks(run)[0].state == TaskState.CANCELLED
    assert service.reader.runs() == []
    assert layers(guest) == {"vda": 1, "vdb": 1}, "its layers stay for the next run"
    guest.write("vda", 0, 4 * KIB, 0x21)
    service.backup(job, guest)
    service.assert_all_hold(guest)


def test_the_bus_is_away_while_it_stores(bed: Bed, service: Service) -> None:
    """Longer than its lease: it goes on with the same capture, and says so when it is heard again."""
    guest = two_disks(bed)
    service.agent()
    run, job = slow_run(service, guest)
    service.stop_scheduler()
    guest.write("vda", 0, 8 * KIB, 0x22)
    time.sleep(service.settings.task_lease + 6)
    service.start_scheduler()
    service.ended(run)
    service.truth[run] = service.truth_of_next
    assert how(service, run) == all_disks("full", "full", "first_run")
    assert layers(guest) == {"vda": 1, "vdb": 1}, "one snapshot was enough"
    guest.write("vdb", 0, 8 * KIB, 0x23)
    second = service.backup(job, guest)
    assert how(service, second) == all_disks("incremental", "delta", None)
    service.assert_all_hold(guest)


class Doubling(Bus):
    """Everything that is said arrives twice, and the first answer is lost."""

    def to(self, topic: str, server: str | None = None) -> Caller:
        caller = super().to(topic, server)
        once = caller.call

        def twice(verb: Any, question: Any, patience: float | None = None) -> Any:
            once(verb, question, patience)
            return once(verb, question, patience)

        caller.call = twice  # type: ignore[method-assign]
        return caller


def test_everything_is_said_twice(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    service.bus.close()
    service.stop_scheduler()
    service.bus = Doubling(service.bus_url, patience=5)
    service.start_scheduler()
    service.agent()
    job = service.job(guest)
    service.backup(job, guest)
    guest.write("vda", 0, 8 * KIB, 0x24)
    second = service.backup(job, guest)
    assert how(service, second) == all_disks("incremental", "delta", None)
    service.assert_all_hold(guest)


class Losing(Bus):
    """Some claims are carried out, and nobody hears the answer."""

    lost = 0

    def to(self, topic: str, server: str | None = None) -> Caller:
        caller = super().to(topic, server)
        once = caller.call

        def call(verb: Any, question: Any, patience: float | None = None) -> Any:
            answer = once(verb, question, patience)
            if verb.name == "claim" and answer.tasks and self.lost > 0:
                self.lost -= 1
                raise BusUnavailable(verb=verb.name, detail="the answer was lost")
            return answer

        caller.call = call  # type: ignore[method-assign]
        return caller


def test_a_claim_whose_answer_is_lost(bed: Bed, service: Service) -> None:
    """Of a new task, and of one whose capture is open here: no second snapshot, no waiting for a lease."""
    guest = two_disks(bed)
    service.bus.close()
    service.stop_scheduler()
    service.bus = bus = Losing(service.bus_url, patience=5)
    service.settings = replace(service.settings, task_lease=600.0)
    service.start_scheduler()
    service.agent()
    bus.lost = 2
    run, job = slow_run(service, guest)
    (task,) = service.tasks(run)
    assert (bus.lost, task.epoch) == (0, 3)
    # a question of before comes late: it claims the task that is worked on
    agent_id, epoch = str(task.service_id), task.epoch
    service.database.run(lambda s: tasks.claim(s, agent_id, [TaskKind.BACKUP], 0, 600.0, ()) and None)
    assert service.tasks(run)[0].epoch == epoch + 1
    service.ended(run)
    service.truth[run] = service.truth_of_next
    assert service.tasks(run)[0].epoch == epoch + 2
    assert layers(guest) == {"vda": 1, "vdb": 1}, "one snapshot was enough"
    service.backup(job, guest)
    service.assert_all_hold(guest)


def test_told_to_stop_it_hands_back_and_the_next_start_goes_on(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    agent = service.agent(drain_timeout=0.5)
    run, job = slow_run(service, guest)
    began = time.monotonic()
    agent.stop()
    assert time.monotonic() - began < 15
    assert service.tasks(run)[0].state == TaskState.READY
    guest.write("vda", 1 * MIB, 8 * KIB, 0x25)
    truth = guest.frozen_model()
    service.agent()
    service.ended(run)
    service.truth[run] = truth
    guest.write("vda", 2 * MIB, 8 * KIB, 0x26)
    second = service.backup(job, guest)
    assert how(service, second) == all_disks("incremental", "delta", None)
    service.assert_all_hold(guest)
    assert layers(guest) == {"vda": 1, "vdb": 1}


def test_told_to_stop_it_ends_what_can_be_ended(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    agent = service.agent(drain_timeout=60.0)
    run, _ = slow_run(service, guest)
    agent.stop()
    assert service.run(run).state == RunState.AVAILABLE
    assert [task.state for task in service.tasks(run, TaskKind.FINISH)] == [TaskState.DONE]
