"""The main job, told step by step. Called by ../quickstart, which sets up before.

A VM is made on this host's libvirt with a qcow2 disk on a base image and a raw disk, both with an ext4 that the guest
writes numbered records to. Everything that Raksha does is done by `raksha serve`, which is asked over REST.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
from quickstart_service import QuickstartFailed, Service

from tests.bed import Bed, BedError, Host, Machine
from tests.bed.disks import run

MIB = 1024 * 1024
#: what the base image is filled with: files that every Debian with Python has
SAMPLE = Path("/usr/lib/python3.11")
RAKSHA = Path(sys.executable).with_name("raksha")


def main() -> int:
    options = argparse.ArgumentParser(prog="./quickstart")
    options.add_argument("--keep", action="store_true")
    keep = options.parse_args().keep
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended by a signal"))
    try:
        with ExitStack() as stack:
            host = demonstration_host()
            stack.callback(host.close)
            bed = stack.enter_context(Bed(host, prefix="quickstart-"))
            # ended before its files go
            with ExitStack() as running:
                service = demonstrate(bed, running)
            if keep:
                bed.keep()
                stack.pop_all()
                tell_what_is_kept(bed, service)
            return 0
    except (QuickstartFailed, BedError, libvirt.libvirtError) as error:
        print(f"\nquickstart failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything was removed", file=sys.stderr)
        return 130


def demonstration_host() -> Host:
    """This host's libvirt as its user has it, and a new directory where guests' disks usually are."""
    images, uri = Path("/var/lib/libvirt/images"), "qemu:///system"
    if os.geteuid() != 0:
        images, uri = Path.home() / ".local/share/libvirt/images", "qemu:///session"
    images.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="raksha-", dir=images))
    directory.chmod(0o755)
    return Host(uri, directory)


def demonstrate(bed: Bed, stack: ExitStack) -> Service:
    """The service is returned running; `stack` ends it."""
    vm = step_make_a_vm(bed)
    service = step_start_the_service(bed, vm, stack)

    print("\n3. A backup job: each day, the first time in a moment; the restore points of two weeks stay.")
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat(timespec="seconds")
    wanted = {
        "name": "daily", "vms": [{"id": vm.uuid}], "schedule": {"every": 86400, "anchor": soon},
        "retention": {"daily": 14}, "quiesce": "require",
    }  # fmt: skip
    job = f"backupjobs/{service.post('backupjobs', wanted)['id']}"
    (run,) = service.until(lambda: service.ask(f"{job}/backupjobruns")["backupjobruns"], "the schedule fires")
    print("   The schedule has fired. The first backup reads everything, while the VM writes on.")
    full = backup(service, vm, job, run["id"], "full")

    print("\n4. The guest goes on writing; a backup by hand sends only what changed.")
    vm.wait_for_records(150)
    increment = backup(service, vm, job, service.post(f"{job}/incremental")["id"], "incremental")

    print("\n5. The VM is switched off, as if its host had died. Its last backup becomes a new VM.")
    vm.power_off()
    name = f"{vm.name}-again"
    restore = service.post(
        f"{job}/backupjobruns/{increment.run}",
        {"target": {"kind": "domain"}, "vms": [{"id": vm.uuid, "name": name}]},
    )
    restore = service.ended(f"restores/{restore['id']}", "done")
    restored = bed.adopt(name)
    found = step_check_from_inside(restored, increment)

    print("\nWhat happened")
    for what, made in (("full", full), ("incremental", increment)):
        print(f"   {what + ' backup':<20} {made.told}")
    state = bed.directory / "state"
    print(f"   {'restore':<20} {size_of(state / 'restores')} on disk, {seconds_of(restore):.1f} s")
    print(f"   {'the vault has':<20} {size_of(state / 'vault')}, for both restore points")
    print(f"   {'the restored guest':<20} {found}")
    tell_how_to_go_on()
    return service


def step_start_the_service(bed: Bed, vm: Machine, stack: ExitStack) -> Service:
    print("\n2. The service of this host: API, scheduler and agent in one process.")
    began = time.monotonic()
    service = Service(RAKSHA, bed.directory / "state", bed.uri)
    stack.callback(service.close)
    print(f"   $ {service.command} &")
    service.until(lambda: vm.uuid in [each["id"] for each in service.ask("vms")["vms"]], "the VM is seen")
    print(f"   After {time.monotonic() - began:.1f} s it listens, and has seen the VM.")
    print(f"   $ API={service.api}")
    login = f'curl -s -u "admin:$(cat {service.password_file})"'
    print(f'   $ ask() {{ {login} -H Content-Type:application/json "$@"; }}')
    return service


def step_make_a_vm(bed: Bed) -> Machine:
    print("\n1. A VM with two disks: a qcow2 with a base image, and a raw one.")
    files = make_base(bed)
    disks = [bed.qcow2("system", None, backing="base.qcow2"), bed.raw("data", 64 * MIB)]
    vm = bed.machine(disks, mode="fs", pause=0, name="vm")
    began = time.monotonic()
    vm.boot()
    how = "with KVM" if bed.host.domain_type() == "kvm" else "emulated, as there is no KVM"
    print(f"   {vm.name} has booted in {time.monotonic() - began:.1f} s ({how}).")
    print(f"   Its first disk has a file system with {files} files from the base image.")
    last = vm.wait_for_records(100)
    print(f"   It writes numbered records to both disks, {last} until now.")
    return vm


def make_base(bed: Bed) -> int:
    """An ext4 full of ordinary files, and their checksums for the guest to check. Returns how many."""
    tree, raw = bed.directory / "tree", bed.directory / "base.raw"
    shutil.copytree(SAMPLE, tree / "files", ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files]
    (tree / "checksums").write_text("".join(sums))
    with raw.open("xb") as file:
        file.truncate(256 * MIB)
    run("/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, bed.directory / "base.qcow2")
    shutil.rmtree(tree)
    raw.unlink()
    return len(files)


@dataclass(frozen=True, slots=True)
class Backup:
    """One restore point."""

    run: str
    #: records that the guest had acknowledged before and after
    before: int
    after: int
    #: a line about it
    told: str


def backup(service: Service, vm: Machine, job: str, run_id: str, kind: str) -> Backup:
    """Wait for a run, and see what it made."""
    path = f"{job}/backupjobruns/{run_id}"
    before = vm.last_ack()
    run = service.ended(path, "available")
    after = vm.last_ack()
    print(f"   $ ask $API/{path}")
    disks = [disk for each in run["vms"] for disk in each["resources"]]
    if {disk["kind"] for disk in disks} != {kind}:
        raise QuickstartFailed(f"the backup is not {kind}: {disks}")
    read, sent = (run["progress"][each] for each in ("bytes_done", "bytes_sent"))
    told = f"{mib(read)} read, {mib(sent)} sent, {seconds_of(run):.1f} s; frozen for {run['frozen_seconds'] or 0:.2f} s"
    print(f"   {kind} backup: {told}")
    print(f"   The guest had acknowledged record {before} before it, and {after} after it.")
    return Backup(run_id, before, after, told)


def seconds_of(shown: Any) -> float:
    """Of a run or a restore, from its start to its end."""
    began, ended = (datetime.fromisoformat(shown[each]) for each in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def step_check_from_inside(restored: Machine, point: Backup) -> str:
    print(f"\n6. {restored.name} boots, and its guest checks what it finds.")
    restored.start()
    restored.wait_for(r"READY \w+", timeout=60)
    if not restored.verdict():
        raise QuickstartFailed(f"the restored guest found damage:\n{restored.log()[-1500:]}")
    line = restored.wait_for(r"VERDICT good .*")[0].strip()
    newest = [int(word.partition("=")[2]) for word in line.split()[2:]]
    print(f"   guest: {line}")
    if not all(point.before <= number <= point.after + 1 for number in newest):
        raise QuickstartFailed(f"records {newest} are not of the restore point ({point.before} to {point.after})")
    restored.wait_for_agent()
    restored.run("/bin/sh", "-c", "cd /mnt/vda && md5sum -c -s checksums", timeout=120)
    print("   guest: every file of the base image has the checksum it was made with")
    return f"has all {newest[0]} records right on both disks, and every file of the base image"


def tell_how_to_go_on() -> None:
    print("""
The same with a VM of your own (as root for those of qemu:///system)
   . .venv/bin/activate
   raksha serve --vault file:///srv/vault &      # tells how to log in; etc/systemd/ has a unit for it
   ask $API/vms                                  # ids of VMs; then as above

The same without any service
   raksha local vms
   raksha local backup VM --vault file:///srv/vault
   raksha local list --vault file:///srv/vault
   raksha local restore latest --vault file:///srv/vault --vm VM --as NEW-NAME --into DIRECTORY
   raksha local release VM                       # takes Raksha's overlay off its disks again""")


def tell_what_is_kept(bed: Bed, service: Service) -> None:
    domains = run("virsh", "-c", bed.uri, "list", "--all", "--name").split()
    names = [name for name in domains if bed.directory.name in name]
    print(f"\nKept: the VMs {', '.join(names)}, and {bed.directory} (vault, state, disks).")
    print(f"To start the service again:\n   {service.command}\nTo remove all:")
    for name in names:
        print(f"   virsh -c {bed.uri} destroy {name}; virsh -c {bed.uri} undefine {name}")
    print(f"   rm -r {bed.host.directory}")


def mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def size_of(path: Path) -> str:
    """What a tree takes on the disk."""
    return mib(sum(each.lstat().st_blocks * 512 for each in path.rglob("*")))


if __name__ == "__main__":
    sys.exit(main())
