"""Encrypted images."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.bed.image import BedError

_ATTEMPTS = 20


def make_luks(path: Path, size: str, *options: str) -> None:
    """`qemu-img create` with `options`, again where it says that it could not measure the CPU: it measures how many
    rounds its key takes, which the clock of a busy machine does not always tell. Raises `BedError`."""
    command = ["qemu-img", "create", "-q", *options, str(path), size]
    for _ in range(_ATTEMPTS):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "CPU usage" not in done.stderr:
            break
    raise BedError(done.stderr)
