"""Full backup and restore of file-system data, directory vault, against everybody."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import Borg, QemuImg, Raksha, Restic, VirtNbdBackup, fresh, nbdcopy, zstd_alone
from benchmarks.goals import Goal, over
from benchmarks.image import make_image
from benchmarks.machine import a_bed, idle
from benchmarks.measuring import Figures, Place, Ran, count_of, run, settle, size_of
from tests.bed.bed import Bed
from tests.bed.disks import Disk, loop_device

TITLE = "File-system data: full backup and restore"
ABOUT = """\
All contenders in turn within each round, from a disk in the page cache; of borg, restic and virtnbdbackup the restore
in the first round only. Raksha, borg and restic have synced what they wrote when they end; qemu-img and virtnbdbackup
leave it in the page cache, and have no digests. borg does not encrypt here (`-e none`), neither does Raksha; restic
always does. virtnbdbackup has the disk as qcow2: of a raw one it stores every zero. The ceilings are each measured
alone: `zstd -1` in clusters of 64 KiB on all cores, into nothing, start of Python included; `nbdcopy` of the disk.
"""
PEERS = ("qemu-img", "borg zstd", "borg lz4", "restic", "virtnbdbackup lz4")
RESTORES = (*PEERS, "virtnbdbackup plain")
GOALS = (
    *(Goal(f"full: time of {name} / time of Raksha", over(f"{name} full", "raksha full"), 1) for name in PEERS),
    Goal("full: time of virtnbdbackup, which does not compress / time of Raksha",
         over("virtnbdbackup plain full", "raksha full")),
    Goal("full: time of zstd alone / time of Raksha", over("zstd alone", "raksha full"), 0.85),
    Goal("full: time of nbdcopy into nothing / time of Raksha", over("nbdcopy alone", "raksha full")),
    Goal("full: bytes stored by Raksha / by qemu-img", over("raksha stored", "qemu-img stored"), -1.1),
    *(Goal(f"restore: time of {name} / time of Raksha to raw", over(f"{name} restore", "raksha restore"), 1)
      for name in RESTORES),
    Goal("restore to a block device: time of qemu-img to a file / time of Raksha",
         over("qemu-img restore", "raksha restore to device"), 1),
)  # fmt: skip


def measure(place: Place, figures: Figures) -> None:
    disk = place.directory / "disk.raw"
    figures.note("data", make_image(disk, place.quick))
    with a_bed() as bed:
        vm = idle(bed, "off", disk).name
        virtual = _of_qcow2(bed, disk)
        raksha = Raksha(place.directory, bed.uri)
        peers: dict[str, Any] = {
            "qemu-img": QemuImg(place.directory),
            "borg zstd": Borg(place.directory, "zstd,1"),
            "borg lz4": Borg(place.directory, "lz4"),
            "restic": Restic(place.directory),
            "virtnbdbackup plain": VirtNbdBackup(place.directory, bed.uri),
            "virtnbdbackup lz4": VirtNbdBackup(place.directory, bed.uri, "-z"),
        }
        alone: dict[str, Callable[[], Ran]] = {
            "zstd alone": lambda: zstd_alone(disk), "nbdcopy alone": lambda: nbdcopy(disk),
        }  # fmt: skip
        for number in range(place.rounds):
            for name, command in alone.items():
                settle(disk)
                figures.attempt(name, lambda name=name, command=command: figures.ran(name, command()))
            figures.attempt("raksha", lambda: _raksha(raksha, vm, disk, figures, place.directory))
            for name, peer in peers.items():
                what = virtual if name.startswith("virtnbdbackup") else disk
                restore = number == 0 or name == "qemu-img"
                figures.attempt(name, partial(_peer, name, peer, what, disk, figures, restore=restore))
                fresh(peer.stored)


def _of_qcow2(bed: Bed, disk: Path) -> str:
    """A VM with the same in an image: of raw disks virtnbdbackup copies every zero."""
    image = bed.directory / "same.qcow2"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image])
    return bed.machine([Disk(bed.host.give(image), "qcow2")], name="image", mode="idle", agent=False).name


def _raksha(raksha: Raksha, vm: str, disk: Path, figures: Figures, directory: Path) -> None:
    settle(disk)
    figures.ran("raksha full", raksha.full(vm))
    figures.note("raksha stored", size_of(raksha.vault))
    figures.note("raksha objects", count_of(raksha.vault))
    figures.note("raksha metadata", size_of(raksha.vault / "backupjobs"))
    settle(raksha.vault)
    out = directory / "restored.raw"
    figures.ran("raksha restore", raksha.restore(out))
    _same(out, disk)
    out.unlink()
    figures.attempt("raksha restore to device", lambda: _to_device(raksha, disk, figures, directory))


def _to_device(raksha: Raksha, disk: Path, figures: Figures, directory: Path) -> None:
    target = directory / "device.raw"
    with target.open("wb") as file:
        file.truncate(disk.stat().st_size)
    try:
        with loop_device(target) as device:
            settle(raksha.vault)
            figures.ran("raksha restore to device", raksha.restore(device, keep=True))
        os.sync()
        _same(target, disk)
    finally:
        target.unlink()


def _peer(name: str, peer: Any, what: Any, disk: Path, figures: Figures, *, restore: bool) -> None:
    settle(disk)
    figures.ran(f"{name} full", peer.full(what))
    figures.note(f"{name} stored", size_of(peer.stored))
    if not restore:
        return
    settle(peer.stored)
    out = disk.with_name("restored")
    try:
        figures.attempt(f"{name}: restore", lambda: figures.ran(f"{name} restore", peer.restore(out)))
    finally:
        fresh(out)


def _same(found: Path, wanted: Path) -> None:
    if not filecmp.cmp(found, wanted, shallow=False):
        raise RuntimeError("the restored disk is not the disk")
