"""KVM or emulation? Tried once: a /dev/kvm that opens may still not run a guest."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path

from tests.bed.image import GuestImage, guest_image

#: seconds; a guest under a KVM that works is off again after two
TRIAL = 8


@lru_cache
def kvm_works() -> bool:
    """Did a guest boot under KVM, as this user? The answer is kept until the host reboots."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    image = guest_image()
    answer = image.initrd.with_name(f"kvm-{os.geteuid()}-{boot_id}")
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
