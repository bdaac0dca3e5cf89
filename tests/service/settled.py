"""What must hold when everything has come to rest: nothing lost, nothing doubled, nothing stuck, nothing left."""

from __future__ import annotations

import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sqlalchemy import func, select

from raksha.db import groups, vaults
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun, Barrier, Pin, Reservation, Restore, Task, VmResourceBackup
from raksha.db.tasks import TERMINAL
from raksha.journal import Journal, LayerState
from raksha.states import (
    BackupState,
    BarrierState,
    MemberState,
    RestoreState,
    RunState,
    TaskKind,
    TaskState,
    Trigger,
)
from raksha.vault import names
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog
from raksha.vault.credentials import from_environment
from raksha.vault.store import BACKUPS, SEGMENTS
from raksha.virt.libvirt.observe import holds_data
from raksha.virt.libvirt.processes import qemu_of, users_of
from tests.bed.deployment import Deployment, HostOfDeployment
from tests.functional.local_kit import Local
from tests.functional.pull_kit import bitmaps
from tests.service.guests import Guest
from tests.service.story import Story
from tests.service.watching import ENDED, Watcher

#: errors of an agent whose libvirtd was killed
_AWAY = {"hypervisor_unavailable", "libvirt_failed"}
#: a kill may end a run so, and another is made in its place
_RESTING = (BackupState.AVAILABLE, BackupState.ERROR)


def check_runs(deployment: Deployment, story: Story, watcher: Watcher) -> Counter[str]:
    """Every run ended, each once. How many ended how."""
    with deployment.database.reading() as session:
        there = {run.id: run for run in session.scalars(select(BackupJobRun))}
    odd = {id: (run.state, run.error) for id, run in there.items() if run.state not in ENDED}
    assert not odd, odd
    # those that retention has removed were restore points before
    gone = set(watcher.runs) - set(there)
    assert gone <= watcher.points, "runs are lost"
    asked = {id for id, run in watcher.runs.items() if run["trigger"] == Trigger.REQUEST and run["retry_of"] is None}
    assert asked == set(story.by_hand), "runs by hand are doubled or lost"
    fire_times = Counter((run["job"], run["scheduled_at"]) for run in watcher.runs.values() if run["scheduled_at"])
    assert not fire_times or max(fire_times.values()) == 1, "a schedule fired twice"
    retries = {run["retry_of"] for run in watcher.runs.values() if run["retry_of"]}
    retries |= {run.retry_of for run in there.values() if run.retry_of}
    for run in there.values():
        if run.state == RunState.ERROR:
            assert run.error and run.error.get("retryable", True), (run.id, run.error)
            # not tried again, as another was under way; those that the test itself makes at the end do not count
            assert run.finished_at is not None
            others = any(other.id not in (run.id, *story.last) and (other.finished_at or 0) >= run.finished_at
                         for other in there.values() if other.backupjob_id == run.backupjob_id)  # fmt: skip
            assert run.id in retries or others, f"nothing came after {run.id}: {run.error}"
    return Counter(f"{run['state']} {(run['error'] or {}).get('code', '')}".strip() for run in watcher.runs.values())


def check_group(deployment: Deployment, run_id: str) -> None:
    """A run of the group that nobody disturbed: all stood still at one instant."""
    with deployment.database.reading() as session:
        run = session.get_one(BackupJobRun, run_id)
        group = groups.of_run(session, run_id)
        assert group is not None and group.state == BarrierState.DONE
        members = groups.members(session, group.id)
    told = [(member.vm_id, member.state, member.frozen_at, member.captured_at, member.thawed_at) for member in members]
    assert len(members) == len(deployment.hosts) and run.group_consistent is True, told
    assert 0 <= run.skew_seconds < 2, told
    # Each time is told with the best estimate of the database's clock at that moment: the first after the start of an
    # agent may be off by half of a slow answer. The exact order is in test_agent_groups.py.
    slack = SECOND // 2
    for member in members:
        assert member.state == MemberState.THAWED, told
        assert member.frozen_at < member.captured_at + slack and member.captured_at < member.thawed_at + slack, told
    first, last = (each(member.captured_at for member in members) for each in (min, max))
    assert max(member.frozen_at for member in members) < first + slack, told
    assert last < min(member.thawed_at for member in members) + slack, told


def check_fire_times(deployment: Deployment, story: Story, watcher: Watcher, paused: dict[str, tuple[float, float]]
                     ) -> None:  # fmt: skip
    """Each fire time has become a run, or was let pass for a reason that the job counts."""
    with deployment.database.reading() as session:
        missed = {job.id: job.missed_runs for job in session.scalars(select(BackupJob))}
    for job, (before, after) in paused.items():
        fired = [run["scheduled_at"] for run in watcher.runs.values() if run["job"] == job and run["scheduled_at"]]
        least, most = len(story.fired(job, before - 1)), len(story.fired(job, after))
        counted = len(fired) + missed[job]
        told = f"{job}: {missed[job]} missed, {least} to {most} due from {story.anchors[job]}, fired {sorted(fired)}"
        assert least <= counted <= most, told
        assert set(fired) <= set(story.fired(job, after)), "it fired when it was not due"


def check_restores(deployment: Deployment, story: Story, taken: dict[tuple[str, str], tuple[float, bool]]) -> int:
    """All restores that were asked for have ended, and each holds what its restore point holds; or its libvirtd died,
    which it says, and nothing of it is left. How many hold it."""
    with deployment.database.reading() as session:
        rows = {row.id: row for row in session.scalars(select(Restore))}
        results = {task.restore_id: task.result for task in
                   session.scalars(select(Task).where(Task.kind == TaskKind.RESTORE))}  # fmt: skip
    assert set(rows) == {asked.id for asked in story.restores}
    good = 0
    for asked in story.restores:
        row = rows[asked.id]
        if row.state == RestoreState.ERROR and (row.error or {}).get("code") in _AWAY:
            host = deployment.hosts[asked.host]
            assert [path for path in (host.restores / asked.id).rglob("*") if not path.is_dir()] == [], asked
            assert asked.name not in {domain.name() for domain in host.libvirt.connect().listAllDomains()}, asked
            continue
        good += 1
        assert row.state == RestoreState.DONE, (asked, row.state, row.error)
        result: Any = results[asked.id]
        images = [(Path(disk["path"]), _form(Path(disk["path"]))) for disk in result["disks"]]
        assert [disk["disk"] for disk in result["disks"]] == asked.guest.targets
        at, clean = taken[asked.run, asked.guest.uuid]
        asked.guest.check(images, at, clean=clean)
        if asked.name is not None:
            machine = deployment.hosts[asked.host].bed.adopt(asked.name)
            assert machine.uuid == result["vm"] and not machine.running
            machine.remove()
    return good


def _form(image: Path) -> str:
    told = subprocess.run(["qemu-img", "info", "-U", image], capture_output=True, text=True, check=True).stdout
    return "qcow2" if "file format: qcow2" in told else "raw"


def check_database(deployment: Deployment, points: int) -> None:
    with deployment.database.reading() as session:
        tasks = session.scalars(select(Task).where(Task.state.not_in(TERMINAL))).all()
        assert not tasks, [(task.kind, task.state, task.backupjobrun_id, task.error) for task in tasks]
        slots = session.scalars(select(Reservation)).all()
        assert not slots, [(slot.kind, slot.name, slot.holder_id) for slot in slots]
        pins = session.scalars(select(Pin)).all()
        assert not pins, [(pin.holder_kind, pin.holder_id) for pin in pins]
        copies = session.scalars(select(VmResourceBackup)).all()
        odd = [(copy.id, copy.state, copy.pin_count, copy.other_map_digest) for copy in copies
               if copy.state not in _RESTING or copy.pin_count]  # fmt: skip
        assert not odd, odd
        needed = session.scalar(select(func.count()).select_from(BackupJobRun).where(
            BackupJobRun.state == RunState.AVAILABLE))  # fmt: skip
        assert needed == points
        # where libvirtd was away, the next run does what was to be done
        failed = session.scalars(select(Task).where(Task.kind == TaskKind.FINISH, Task.state != TaskState.DONE)).all()
        codes = {(task.error or {}).get("code") for task in failed}
        assert codes <= _AWAY, [(task.state, task.error) for task in failed]
        groups = session.scalars(select(Barrier.state).distinct()).all()
        assert {str(state) for state in groups} <= {"done", "failed"}, groups


def check_vault(deployment: Deployment) -> None:
    """It has what its restore points name, and nothing else."""
    with deployment.database.reading() as session:
        (vault,) = vaults.all_vaults(session)
        rows = {run.id: run.commit_number for run in
                session.scalars(select(BackupJobRun).where(BackupJobRun.state == RunState.AVAILABLE))}  # fmt: skip
    assert vault.url == deployment.vault_url
    credentials = from_environment(vault.url, deployment.swift.env)
    with closing(open_store(vault.url, credentials=credentials)) as store:
        catalog = Catalog.open(store)
        runs = catalog.runs()
        assert {run.backupjobrun: run.number for run in runs} == rows
        wanted: set[str] = set()
        for run in runs:
            wanted.add(names.run(run.backupjob, run.backupjobrun))
            for vm in run.vms:
                wanted.add(names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm))
            for key in run.resource_keys():
                metadata = catalog.metadata(key)
                wanted |= {names.metadata(key), names.image(key), names.map_object(key, metadata.map.digest)}
                wanted |= set(catalog.reader(metadata).object_names())
        kept = (names.VAULT, names.KEYS, names.EPOCHS)
        found = {name for each in (BACKUPS, SEGMENTS) for name in store.names(each) if not name.startswith(kept)}
    assert not wanted - found, f"missing: {sorted(wanted - found)[:5]}"
    assert not found - wanted, f"garbage: {sorted(found - wanted)[:5]} ({len(found - wanted)} in all)"


def check_host(host: HostOfDeployment, guests: list[Guest], restores: set[str]) -> None:
    """No task, no result, no job of libvirt, no file that nobody needs."""
    journal = Journal(host.state)
    try:
        assert journal.open_intents() == [], host.name
        assert journal.results() == [], host.name
        assert journal.trash() == [], host.name
    finally:
        journal.close()
    used: set[str] = set()
    for guest in guests:
        domain = guest.machine.domain
        assert domain.jobInfo()[0] == 0 and domain.listAllCheckpoints() == [], guest.name
        layers = _layers(guest)
        found = bitmaps(guest.machine)
        for target, paths in layers.items():
            ours = [path for path in paths if ".raksha-" in path]
            used |= set(ours)
            bits = sum(len(found.get(Path(path).name, [])) for path in paths)
            assert (len(ours), bits) in ((1, 0), (0, 1)), f"{guest.name} {target}: {paths}, bitmaps {found}"
            assert domain.blockJobInfo(target) == {}, f"{guest.name} {target} has a block job"
    strays = {str(path) for path in host.bed.directory.glob("*.raksha-*")} - used
    odd = strays - _left_open(host, guests)
    assert not odd, odd
    for folder in ("scratch", "spool", "overlays", "stored"):
        left = [path for path in (host.state / folder).rglob("*") if not path.is_dir()]
        assert not left, left
    made = {path.name for path in host.restores.iterdir()}
    assert made <= restores, f"left by restores: {made - restores}"
    parts = [path for path in host.restores.rglob("*") if path.name.startswith(".raksha")]
    assert not parts, parts
    assert not _helpers(host), f"processes are left on {host.name}"


def _left_open(host: HostOfDeployment, guests: list[Guest]) -> set[str]:
    """Overlays that QEMU has opened for a libvirtd that was killed before it took the snapshot: empty, known to be
    ours, and to be put away when the VM ends (`docs/safety.md`)."""
    with closing(Journal(host.state)) as journal:
        layers = [layer for guest in guests for layer in journal.layers(guest.uuid)]
    found = set()
    for layer in layers:
        path = Path(layer.file.path)
        if layer.state is LayerState.PLANNED and path.exists() and not holds_data(str(path)):
            status = path.stat()
            qemu = {process.pid for process in qemu_of(layer.vm)}
            if qemu & set(users_of(status.st_dev, status.st_ino)):
                found.add(str(path))
    return found


def _layers(guest: Guest) -> dict[str, list[str]]:
    """Files of each disk, the top first."""
    found = {}
    for disk in ElementTree.fromstring(guest.machine.xml()).findall("devices/disk"):
        target = disk.find("target")
        assert target is not None
        sources = (source.attrib.get("file") for source in disk.iter("source"))
        found[target.attrib["dev"]] = [file for file in sources if file is not None]
    return found


def _helpers(host: HostOfDeployment) -> list[str]:
    """Commands of processes of ours that are at work on files of a host: qemu-nbd, guards, watchdogs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        ours = any(str(host.libvirt.directory) in word for word in words)
        if ours and ("qemu-nbd" in words[0] or any(word.startswith("raksha.virt") for word in words)):
            found.append(" ".join(words))
    return found


def check_points(deployment: Deployment, story: Story, into: Path) -> tuple[int, dict[tuple[str, str], Any]]:
    """The vault by itself gives back every restore point, each with the records of its moment. How many; and of each
    VM of each point when it was taken, and whether its file systems stood still then."""
    reader = Local("test:///default", deployment.folder / "reader", deployment.vault_url, dict(deployment.swift.env))
    assert reader.good("verify", "--data").json["findings"] == []
    taken: dict[tuple[str, str], Any] = {}
    listed = reader.good("list").json["runs"]
    for run in listed:
        guests = {guest.uuid: guest for guest in story.jobs[run["backupjob"]]}
        assert {vm["vm"] for vm in run["vms"]} == set(guests), run
        for vm in run["vms"]:
            at, clean = vm["taken_at"], vm["consistency"] == "quiesced"
            taken[run["backupjobrun"], vm["vm"]] = at, clean
            place = into / run["backupjobrun"] / vm["vm"]
            place.mkdir(parents=True)
            words = (run["backupjobrun"], "--vm", vm["vm"], "--into", place, "--format", "raw")
            disks = {disk["disk"]: Path(disk["target"]) for disk in reader.good("restore", *words).json["disks"]}
            guest = guests[vm["vm"]]
            assert list(disks) == guest.targets
            guest.check([(path, "raw") for path in disks.values()], at, clean=clean)
            for path in place.iterdir():
                path.unlink()
    return len(listed), taken


def check_guests(guests: list[Guest], into: Path) -> None:
    """None is frozen, and what each has acknowledged is on its own disks: the guest is switched off for that."""
    for guest in guests:
        guest.assert_goes_on()
    for guest in guests:
        acknowledged = guest.machine.last_ack()
        paths = [each[0] for each in _layers(guest).values()]
        guest.machine.power_off()
        images = []
        for path in paths:
            raw = into / f"{guest.host.name}-{guest.name}-{Path(path).name}.raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True, capture_output=True)
            images.append((raw, "raw"))
        guest.newest(images, acknowledged, clean=False)
        assert "VERDICT bad" not in guest.machine.log() and "RECORDS" not in guest.machine.log(), guest.name
