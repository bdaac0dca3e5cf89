"""The guest: Debian's cloud kernel and an initramfs of busybox, the guest agent, mkfs.ext4 and the record writer.

`guest_image()` makes it once (about two seconds) and keeps it in `.cache/guest/`, named after the contents of all
that goes in; concurrent callers wait for the first. `scripts/setup` must have fetched the kernel and the agent
before.

Not promised: a guest for another machine than x86-64.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).with_name("guest")
#: made by scripts/setup: unpacked Debian packages that are not to be installed on the host
UNPACKED = REPOSITORY / ".cache" / "unpacked"
#: in the order of loading; one that is built into the kernel is left out
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)
DIRECTORIES = (
    "bin", "dev", "etc", "lib", "lib/x86_64-linux-gnu", "lib64", "mnt", "modules", "proc", "run", "sbin", "sys", "tmp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files for libvirt's <kernel> and <initrd>."""

    kernel: Path
    initrd: Path


class BedError(Exception):
    """The test bed cannot do what was asked of it."""


def guest_image() -> GuestImage:
    """The image, built if it is not there. Raises `BedError` where `scripts/setup` has not run."""
    kernels = sorted(UNPACKED.glob("boot/vmlinuz-*-cloud-amd64"))
    if not kernels:
        raise BedError("no guest kernel: run scripts/setup")
    modules = [UNPACKED / "lib/modules" / kernels[-1].name.removeprefix("vmlinuz-") / "kernel"]
    if not modules[0].is_dir():
        raise BedError(f"no modules for {kernels[-1].name}: remove .cache and run scripts/setup")
    contents = dict(_programs(modules[0]))
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name, source in sorted(contents.items()):
        digest.update(name.encode() + hashlib.sha256(source.read_bytes()).digest())
    image = GuestImage(kernels[-1], REPOSITORY / ".cache/guest" / f"initrd-{digest.hexdigest()[:16]}")
    image.initrd.parent.mkdir(parents=True, exist_ok=True)
    with (image.initrd.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.initrd.exists():
            _build(contents, image.initrd)
    return image


def _programs(modules: Path) -> Iterator[tuple[str, Path]]:
    """Name inside the guest, and file on the host that it is made of."""
    agent, mkfs = UNPACKED / "usr/sbin/qemu-ga", Path(_which("mkfs.ext4")).resolve()
    yield "bin/busybox", Path(_which("busybox"))
    yield "bin/qemu-ga", agent
    yield "bin/mkfs.ext4", mkfs
    yield "etc/mke2fs.conf", Path("/etc/mke2fs.conf")
    yield "init", SOURCES / "init"
    yield "bin/freeze-hook", SOURCES / "freeze-hook"
    yield "sbin/shutdown", SOURCES / "shutdown"
    yield "records.c", SOURCES / "records.c"
    for path in sorted(set(_libraries(agent) + _libraries(mkfs))):
        yield ("lib64/" if path.name.startswith("ld-") else "lib/x86_64-linux-gnu/") + path.name, path
    for name in MODULES:
        for found in modules.rglob(f"{name}.ko"):
            yield f"modules/{found.name}", found


def _which(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not found:
        raise BedError(f"{program} is missing: run scripts/setup")
    return found


def _libraries(program: Path) -> list[Path]:
    """The shared libraries of a program, as the host has them or as they were unpacked."""
    unpacked = UNPACKED / "usr/lib/x86_64-linux-gnu"
    environment = {"LD_LIBRARY_PATH": f"{unpacked}:{UNPACKED / 'lib/x86_64-linux-gnu'}", "PATH": "/usr/bin:/bin"}
    output = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, env=environment).stdout
    if "not found" in output:
        raise BedError(f"libraries of {program} are missing: {output}")
    words = (line.split() for line in output.splitlines())
    return [Path(word) for line in words for word in line if word.startswith("/")]


def _build(contents: dict[str, Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        writer = Path(scratch) / "records"
        source = contents["records.c"]
        subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", writer, source], check=True)
        archive = bytearray()
        for name in DIRECTORIES:
            archive += _member(name, stat.S_IFDIR | 0o755, b"")
        archive += _member("dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
        for name, path in {**contents, "bin/records": writer}.items():
            archive += _member(name, stat.S_IFREG | 0o755, path.read_bytes())
        order = [f"{name}.ko" for name in MODULES if f"modules/{name}.ko" in contents]
        archive += _member("modules/order", stat.S_IFREG | 0o644, "\n".join([*order, ""]).encode())
        archive += _member("TRAILER!!!", 0, b"")
        finished = Path(scratch) / "initrd"
        finished.write_bytes(archive)
        finished.chmod(0o644)
        finished.rename(target)


def _member(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    """One entry of a cpio archive of the "newc" kind, which is what Linux unpacks: header, name, data, each padded."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
