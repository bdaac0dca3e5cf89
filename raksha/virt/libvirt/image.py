"""The only caller of qemu-img: argument lists, stated formats, limits on time and memory.

Nothing here probes a format; the only call that opens what a header names is `commit`, which is asked of chains whose
every layer has been checked.
"""

from __future__ import annotations

import json
import subprocess

from raksha import crash
from raksha.errors import ImageToolFailed

#: seconds for calls that only touch headers
_QUICK = 60
#: bytes of address space; a header that asks for more is no image of ours
_MEMORY = 2 * 1024**3
#: seconds of processor time for the quick calls
_CPU = 30


def _change(arguments: list[str], *, timeout: float | None, cpu: int | None) -> None:
    """A call that changes an image."""
    with crash.around(f"qemu-img.{arguments[0]}"):
        _run(arguments, timeout=timeout, cpu=cpu)


def _run(arguments: list[str], *, timeout: float | None, cpu: int | None) -> str:
    limits = [f"--as={_MEMORY}", *([f"--cpu={cpu}"] if cpu else [])]
    name = f"qemu-img {arguments[0]}"
    try:
        # a session of its own: Ctrl-C on the terminal asks us to end, not the tool in the middle of a file
        done = subprocess.run(
            ["prlimit", *limits, "qemu-img", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageToolFailed(command=name, detail=f"no end after {timeout:g} s") from error
    if done.returncode:
        raise ImageToolFailed(command=name, detail=done.stderr.strip() or f"exit {done.returncode}")
    return done.stdout


def rebase(path: str, backing: str) -> None:
    """Name another backing file, a qcow2 image, in the header of the qcow2 image at `path`. It is not opened."""
    _change(["rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", path], timeout=_QUICK, cpu=_CPU)


def bitmaps(path: str) -> dict[str, frozenset[str]]:
    """Flags by name of the dirty bitmaps in the qcow2 image at `path`, which may be in use.

    `auto`: it records; `in-use`: a process has it in memory, or died with it. Those that a running VM began are not
    there yet.
    """
    found = json.loads(_run(["info", "-U", "--output=json", "-f", "qcow2", path], timeout=_QUICK, cpu=_CPU))
    listed = found["format-specific"]["data"].get("bitmaps", [])
    return {each["name"]: frozenset(each["flags"]) for each in listed}


def remove_bitmap(path: str, name: str) -> None:
    """Remove a dirty bitmap from the qcow2 image at `path`, under QEMU's locks. Fails if any process has it open."""
    _change(["bitmap", "--remove", "-f", "qcow2", path, name], timeout=_QUICK, cpu=_CPU)


def commit(path: str, base: str, timeout: float) -> None:
    """Write what the layers above `base` up to `path` hold into `base`, under QEMU's locks. The layers stay.

    For a VM that is shut off. Fails if any process has a layer open.
    """
    _change(["commit", "-q", "-d", "-f", "qcow2", "-b", base, path], timeout=timeout, cpu=None)


def speaks_to_ceph() -> bool:
    """Whether QEMU has what reads and writes images of Ceph: only then it looks for Ceph's configuration."""
    nowhere = {"driver": "rbd", "pool": "-", "image": "-", "conf": "/nonexistent"}
    try:
        _run(["info", "json:" + json.dumps(nowhere)], timeout=_QUICK, cpu=None)
    except ImageToolFailed as error:
        # a module of QEMU that is not installed is named by its file
        return not any(said in str(error) for said in ("Unknown driver", "Unknown protocol", "block-rbd"))
    return True
