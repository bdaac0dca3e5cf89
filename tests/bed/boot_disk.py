"""A disk that boots by itself: GRUB in the gap before the first partition, and on that the kernel and the small guest
of the test bed (`raksha.mode=cloud`). Made without a loop device.

Not promised: a disk for other machines than x86-64 with a BIOS.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.bed.image import BedError, guest_image

MIB = 1 << 20
SIZE = 128 * MIB
_START = MIB
_GRUB = Path("/usr/lib/grub/i386-pc")
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "serial", "terminal", "boot")
#: by the disk that GRUB was started from: its number is not always the same
_CONFIGURATION = """\
serial --unit=0 --speed=115200
terminal_output serial
set root=(hd0,msdos1)
linux /boot/vmlinuz console=ttyS0 quiet loglevel=3 no_timer_check mitigations=off raksha.mode=cloud
initrd /boot/initrd
boot
"""


def boot_disk() -> Path:
    """A qcow2 image, made if it is not there. Raises `BedError`."""
    guest = guest_image()
    folder = guest.initrd.parent
    made = folder / f"image-{guest.initrd.name}.qcow2"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw = Path(scratch, "disk.raw")
        _make(Path(scratch), raw, guest.kernel, guest.initrd)
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, Path(scratch, "disk.qcow2"))
        Path(scratch, "disk.qcow2").rename(made)
    return made


def _run(*command: str | Path) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run([*map(str, command)], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"{' '.join(map(str, command))}: {done.stdout[-1500:]}{done.stderr[-2500:]}")


def _make(scratch: Path, raw: Path, kernel: Path, initrd: Path) -> None:
    with raw.open("xb") as file:
        file.truncate(SIZE)
    table = scratch / "table"
    table.write_text(f"{_START // 512},,L,*\n")
    _run("/bin/sh", "-c", 'exec sfdisk --quiet "$1" <"$2"', "sh", raw, table)
    configuration = scratch / "grub.cfg"
    configuration.write_text(_CONFIGURATION)
    core = scratch / "core.img"
    _run("grub-mkimage", "-O", "i386-pc", "-c", configuration, "-p", "(hd0,msdos1)/boot/grub", "-o", core, *_MODULES)
    boot = (_GRUB / "boot.img").read_bytes()
    assert len(core.read_bytes()) < _START - 512
    with raw.open("r+b") as file:
        file.write(boot[:440])
        file.seek(512)
        file.write(core.read_bytes())
    files = scratch / "files/boot"
    files.mkdir(parents=True)
    shutil.copy(kernel, files / "vmlinuz")
    # smaller to read through GRUB's BIOS calls
    (files / "initrd").write_bytes(gzip.compress(initrd.read_bytes(), 1))
    options = ["-q", "-F", "-t", "ext4", "-O", "^64bit,^metadata_csum", "-E", f"offset={_START}", "-L", "boot"]
    _run("mke2fs", *options, "-d", scratch / "files", raw, f"{(SIZE - _START) // 1024}k")
