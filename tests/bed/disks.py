"""Disks of test guests: image files, loop devices, and a disk that cannot be read in places."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bed.image import BedError


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a guest, as it will stand in the domain's XML."""

    path: Path
    format: str
    #: "file", "block", "nbd" where `path` is the socket of an NBD server, "rbd" where it is POOL/VOLUME
    kind: str = "file"
    #: name inside the VM; None: the next free of vda, vdb, ...
    target: str | None = None
    #: further XML inside <disk>, such as "<readonly/>" or "<serial>x</serial>"
    extra: str = ""
    #: further XML inside its <source>
    where: str = ""


def run(*command: str | Path) -> str:
    """Output of a program. Raises `BedError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BedError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def make_qcow2(
    path: Path, size: int | None = None, backing: Path | str | None = None, backing_format: str = "qcow2"
) -> None:
    """An image of `size` bytes (None: that of the backing file). `backing` is written as it is given: a relative one
    counts from the directory of `path`."""
    base = ["-b", str(backing), "-F", backing_format] if backing else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *base, path, *([str(size)] if size else []))


def make_raw(path: Path, size: int) -> None:
    """A sparse file."""
    with path.open("xb") as file:
        file.truncate(size)


def image_info(path: Path) -> list[dict[str, object]]:
    """`qemu-img info` of the whole chain, the newest layer first."""
    found: list[dict[str, object]] = json.loads(run("qemu-img", "info", "-U", "--backing-chain", "--output=json", path))
    return found


@contextmanager
def as_raw(path: Path, image_format: str) -> Iterator[Path]:
    """A raw view of an image that nobody writes: itself, or a temporary copy."""
    if image_format == "raw":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="rk-raw-") as scratch:
        raw = Path(scratch) / "raw"
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw)
        yield raw


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A block device over a raw file; needs root."""
    device = Path(run("losetup", "--find", "--show", "--direct-io=off", path).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def failing_server(path: Path, socket: Path, error: str = "EIO") -> Iterator[Path]:
    """An NBD server over a raw file on a unix socket, whose reads fail while the file `SOCKET.fail` exists.

    Yields that file's name. Writes always work.
    """
    trigger = socket.with_name(socket.name + ".fail")
    server = subprocess.Popen([
        "nbdkit", "--foreground", "--exit-with-parent", "--filter=error", "--unix", socket, "file", path,
        f"error-pread={error}", "error-pread-rate=100%", f"error-pread-file={trigger}",
    ])  # fmt: skip
    try:
        _wait_for_socket(server, socket)
        socket.chmod(0o666)
        yield trigger
    finally:
        server.terminate()
        server.wait(10)
        socket.unlink(missing_ok=True)


def _wait_for_socket(server: subprocess.Popen[bytes], socket: Path) -> None:
    deadline = time.monotonic() + 10
    while not socket.is_socket():
        if server.poll() is not None or time.monotonic() > deadline:
            raise BedError("nbdkit did not start")
        time.sleep(0.02)
