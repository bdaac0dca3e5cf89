"""`raksha-agent` as a process, over a real RabbitMQ: killed between any two steps, started again, nothing is lost.

The next start recovers what the last one left behind, claims its task again and does it anew; or tells what was done.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.journal import Journal
from raksha.states import RunState, TaskKind, TaskState
from tests.bed import Bed
from tests.bed.rabbitmq import RabbitMq
from tests.bed.swift import free_ports
from tests.functional.agent_kit import PATIENCE, AgentProcess, Service, service_on, until
from tests.functional.local_kit import two_disks, write_noise
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import bitmaps
from tests.service.test_agent import all_disks, how, layers, progress_of

pytestmark = pytest.mark.bed

#: where it dies in an increment, and whether a second snapshot is taken for the same run
OVERLAY = [
    ("journal.run_begin.done", "claimed"),
    ("libvirt.snapshotCreateXML", "before the snapshot"),
    ("libvirt.snapshotCreateXML.done", "after the snapshot"),
    ("vault.put.segment", "while it stores"),
    ("vault.put_file.BackupMap.done", "map of a disk stored"),
    ("journal.keep_result", "all stored, not noted"),
    ("journal.keep_result.done", "noted, not told"),
    ("journal.forget_result", "told, not forgotten"),
    ("journal.run_durable", "before the finish"),
    ("libvirt.blockCommit", "before the merge"),
    ("libvirt.blockCommit.done", "while it merges"),
    ("journal.keep_result:2", "finished, not told"),
]
PULL = [
    ("libvirt.backupBegin", "before the backup job"),
    ("libvirt.backupBegin.done", "under the backup job"),
    ("journal.keep_result.done", "noted, not told"),
    ("journal.run_durable.done", "before the job ends"),
]
POINTS = [("overlay", *each) for each in OVERLAY] + [("pull", *each) for each in PULL]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    made = RabbitMq(tmp_path_factory.mktemp("rabbit"))
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def service(bed: Bed, tmp_path: Path, broker: RabbitMq) -> Iterator[Service]:
    with service_on(bed, tmp_path, broker.url) as made:
        yield made


def dead(process: AgentProcess) -> None:
    until(lambda: not process.running, f"it dies; its log: {process.log.read_text()[-3000:]}")
    assert process.process.returncode == -9, process.log.read_text()[-3000:]


@pytest.mark.parametrize(("engine", "point", "when"), POINTS, ids=[f"{e}: {when}" for e, _, when in POINTS])
def test_killed(bed: Bed, service: Service, engine: str, point: str, when: str) -> None:
    guest = two_disks(bed)
    job = service.job(guest, engine=engine)
    first = service.process()
    service.backup(job, guest)
    assert first.stop() == 0
    guest.write("vda", 1 * MIB, 70 * KIB, 0x31)
    process = service.process(crash_at=point)
    began = guest.frozen_model()
    run = service.queue(job, request_id="req-of-somebody")
    dead(process)
    (task,) = service.tasks(run)
    assert f"[{task.id} {run} req-of-somebody] backup begins under epoch 1" in process.log.read_text()
    guest.write("vdb", 2 * MIB, 8 * KIB, 0x32)
    later = guest.frozen_model()
    again = service.process()
    service.ended(run)
    # it holds one moment: when it was first captured, or when it was captured again
    service.truth[run] = began
    taken_again = len(service.tasks(run)) == 1 and service.tasks(run)[0].epoch > 1 and when not in TOLD
    if taken_again:
        service.truth[run] = later
    service.assert_holds(run, guest)
    guest.write("vda", 3 * MIB, 4 * KIB, 0x33)
    last = service.backup(job, guest)
    found = how(service, last)
    assert found["vda"][:2] == ("incremental", "delta"), found
    service.assert_all_hold(guest)
    assert again.stop() == 0
    assert_nothing_left(service, guest, engine)


#: what was stored by then counts
TOLD = ("noted, not told", "told, not forgotten", "before the finish", "before the merge", "while it merges",
        "finished, not told", "before the job ends")  # fmt: skip


def assert_nothing_left(service: Service, guest: Guest, engine: str) -> None:
    assert layers(guest) == dict.fromkeys(("vda", "vdb"), 1 if engine == "overlay" else 0)
    strays = {path.name for path in guest.bed.directory.glob("*.raksha-*.qcow2")}
    used = {Path(path).name for paths in guest.sources().values() for path in paths}
    assert strays <= used
    if engine == "pull":
        assert guest.machine.domain.jobInfo()[0] == 0 and guest.machine.domain.listAllCheckpoints() == []
        assert {name: len(found) for name, found in bitmaps(guest.machine).items()} == {"vm-a.qcow2": 1}
    journal = Journal(service.host.state_dir)
    try:
        assert journal.open_intents() == [] and journal.results() == []
    finally:
        journal.close()


def test_what_was_stored_before_it_was_killed_is_not_sent_again(bed: Bed, service: Service) -> None:
    """24 segments; it dies when it sends the 20th, one or two others being under way."""
    guest = Guest(bed, [bed.raw("big", 96 * MIB)], name="big")
    guest.start()
    write_noise(guest, "vda", 0, 96 * MIB)
    process = service.process(crash_at="vault.put.segment:20")
    job = service.job(guest)
    run = service.queue(job)
    dead(process)
    first = {path.name for path in service.reader.segments()}
    assert 17 <= len(first) <= 21
    noted = service.host.state_dir / "stored" / guest.uuid
    assert noted.stat().st_size > 0
    guest.write("vda", 5 * MIB, 4 * KIB, 0x51)  # one segment comes out otherwise
    truth = guest.frozen_model()
    again = service.process()
    service.ended(run)
    service.truth[run] = truth
    service.assert_holds(run, guest)
    (task,) = service.tasks(run)
    assert task.epoch == 2
    sent = service.run(run).bytes_sent
    assert (24 - len(first)) * 4 * MIB < sent < (24 - len(first) + 2) * 4 * MIB + 2 * MIB, sent / MIB
    made = {path.name for path in service.reader.segments()} - first
    assert made and all(name.endswith(f"-{task.id}.2") for name in made)
    assert not noted.exists()
    last = service.backup(job, guest)
    assert how(service, last)["vda"][:2] == ("incremental", "delta")
    service.assert_all_hold(guest)
    assert again.stop() == 0


def test_the_broker_is_killed_while_it_stores(bed: Bed, tmp_path: Path) -> None:
    """Away for longer than the lease; then everybody finds it again."""
    broker = RabbitMq(tmp_path)
    broker.prepare()
    broker.start()
    folder = tmp_path / "service"
    folder.mkdir()
    try:
        with service_on(bed, folder, broker.url) as service:
            guest = two_disks(bed)
            write_noise(guest, "vdb", 0, 4 * MIB)
            process = service.process()
            job = service.job(guest, bandwidth_limit=512 * KIB)
            truth = guest.frozen_model()
            run = service.queue(job)
            until(lambda: any(disk["sent"] for disk in progress_of(service, run)), "it stores")
            broker.kill()
            guest.write("vda", 0, 8 * KIB, 0x41)
            time.sleep(service.settings.task_lease + 4)
            broker.start()
            service.ended(run)
            service.truth[run] = truth
            assert layers(guest) == {"vda": 1, "vdb": 1}, "one snapshot was enough"
            second = service.backup(job, guest)
            assert how(service, second) == all_disks("incremental", "delta", None)
            service.assert_all_hold(guest)
            assert process.stop() == 0
    finally:
        broker.stop()


def test_sigterm_hands_back_and_metrics_count(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    write_noise(guest, "vdb", 0, 4 * MIB)
    (port,) = free_ports(1)
    process = service.process(metrics_port=port, drain_timeout=0.5)
    job = service.job(guest, bandwidth_limit=512 * KIB)
    run = service.queue(job)
    until(lambda: any(disk["sent"] for disk in progress_of(service, run)), "it stores")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        told = answer.read().decode()
    assert re.search(r'^raksha_agent_tasks_running\{kind="backup"\} 1\.0$', told, re.M)
    began = time.monotonic()
    assert process.stop() == 0 and time.monotonic() - began < 20
    (task,) = service.tasks(run)
    assert task.state == TaskState.READY
    log = process.log.read_text()
    assert f"[{task.id} {run} -]" in log and "Traceback" not in log
    truth = guest.frozen_model()
    service.process()
    service.ended(run)
    service.truth[run] = truth
    service.assert_all_hold(guest)
    assert [task.state for task in service.tasks(run, TaskKind.FINISH)] == [TaskState.DONE]


def test_killed_while_it_restores(bed: Bed, service: Service) -> None:
    guest = two_disks(bed)
    process = service.process()
    run = service.backup(service.job(guest), guest)
    assert process.stop() == 0
    name = f"{bed.directory.name}-again"
    for point in ("restore.create.done", "restore.link.done", "libvirt.defineXML.done", "journal.keep_result"):
        killed = service.process(crash_at=point)
        restore = service.restore(run, guest, kind="domain", name=name)
        dead(killed)
        assert service.made(restore), "what was begun is known"
        again = service.process()
        result = service.restored(restore).result
        domain = guest.machine.connection.lookupByName(name)
        assert domain.UUIDString() == result["vm"], point
        domain.undefine()
        assert again.stop() == 0
        parts = [path for path in service.restores.rglob("*") if path.name.startswith(".raksha")]
        assert parts == [], point


def test_killed_while_it_restores_in_place(bed: Bed, service: Service) -> None:
    """Whichever file had changed places already: in the end all disks are those of the restore point."""
    guest = two_disks(bed)
    process = service.process()
    job = service.job(guest)
    run = service.backup(job, guest)
    assert process.stop() == 0
    for number, point in enumerate(("restore.exchange", "restore.exchange.done", "libvirt.defineXML.done")):
        guest.write("vda", 0, 1 * MIB, 0x70 + number)
        guest.write("vdb", 0, 1 * MIB, 0x60 + number)
        guest.off()
        killed = service.process(crash_at=point)
        restore = service.restore(run, guest, kind="in_place")
        dead(killed)
        again = service.process()
        service.restored(restore)
        assert again.stop() == 0
        for target, content in service.truth[run].items():
            guest.model[target][:] = content
        guest.start()
        local = service.process()
        service.backup(job, guest)
        assert local.stop() == 0
        assert not [*bed.directory.glob("*.raksha-before"), *bed.directory.glob("*.raksha-restored")], point
    service.assert_all_hold(guest)


def test_killed_while_two_guests_are_frozen(bed: Bed, service: Service) -> None:
    vms = [bed.machine([bed.raw(f"{name}-a", 32 * MIB)], name=name, mode="fs", pause=5000) for name in ("one", "two")]
    for vm in vms:
        vm.boot()
        vm.wait_for_records(3)  # its file system is there
    process = service.process(crash_at="libvirt.snapshotCreateXML")
    job = service.job(*vms, quiesce="require")
    since = [vm.mark() for vm in vms]
    run = service.queue(job)
    dead(process)
    for vm, mark in zip(vms, since, strict=True):
        vm.wait_for("HOOK freeze", mark)
        vm.wait_for("HOOK thaw", mark, timeout=service.host.freeze_deadline)
        assert vm.agent("guest-fsfreeze-status") == "thawed"
        vm.wait_for_records(3)
    service.process()
    service.ended(run, RunState.ERROR)
    assert service.reader.runs() == []
    again = service.queue(job)
    assert service.ended(again).group_consistent is True
    for vm in vms:
        vm.wait_for_records(3)


def test_a_wrong_configuration_is_told_at_start(tmp_path: Path) -> None:
    for text, told in (("[agent]\ncapacity = 0\n", "capacity"), ("", "transport_url"),
                       ("[agent]\nrestore_dirs = here\n", "restore_dirs")):  # fmt: skip
        config = tmp_path / "agent.conf"
        config.write_text(f"[host]\nstate_dir = {tmp_path}/state\nlibvirt_uri = test:///default\n{text}")
        process = AgentProcess(config, tmp_path / "log", {})
        assert process.process.wait(PATIENCE) == 2
        assert told in process.log.read_text()
