"""KVM or emulation? Asked of libvirt first, and then tried: a /dev/kvm that opens may still not run a guest."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path

from tests.bed.daemon import Host
from tests.bed.image import GuestImage, guest_image

#: seconds; a guest under a KVM that works is off again after two
TRIAL = 20


@lru_cache
def accelerator(host: Host) -> str:
    """The domain type for guests of this host: "kvm" where it works, else "qemu"."""
    connection = host.connect()
    try:
        capabilities = connection.getCapabilities()
    finally:
        connection.close()
    x86 = capabilities.partition("<arch name='x86_64'>")[2].partition("</arch>")[0]
    return "kvm" if "<domain type='kvm'" in x86 and _kvm_works(guest_image()) else "qemu"


def _kvm_works(image: GuestImage) -> bool:
    """Boot the guest once under KVM. The answer is kept until the host reboots."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = image.initrd.with_name(f"kvm-{boot_id}")
    if not answer.exists():
        answer.write_text("yes" if "READY" in _trial(image) else "no")
    return answer.read_text() == "yes"


def _trial(image: GuestImage) -> str:
    command: list[str | Path] = [
        "qemu-system-x86_64", "-machine", "pc,accel=kvm", "-m", "128", "-nodefaults", "-nographic", "-no-reboot",
        "-serial", "stdio", "-kernel", image.kernel, "-initrd", image.initrd,
        "-append", "console=ttyS0 quiet panic=-1 raksha.mode=check",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=TRIAL, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace")
