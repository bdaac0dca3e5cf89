"""Whether what overlays hold lies in what they were merged into, and on disk. Changes nothing, and takes no locks.

Asked where QEMU died with a merge: it names the lower file in the header above before it has flushed that file's tables
(QEMU 7.2, block/commit.c), so what the headers say is no proof then.
"""

from __future__ import annotations

import os
from contextlib import closing

from raksha.errors import CaptureFailed, DiskReadFailed
from raksha.virt.libvirt.chain import ChainBroken, follow
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.extents import extents
from raksha.virt.libvirt.nbd import Reader, Server

#: bytes compared at once
_STEP = 1024**2


def is_merged(vm: str, target: str, top: str, depth: int) -> bool | None:
    """Compare what the `depth` overlays from `top` downwards hold with what lies below; None: it cannot be told."""
    try:
        chain = follow((Layer(top, "file", "qcow2"),))
        with (
            closing(Server(vm, target, chain, share=True, connections=4)) as above,
            closing(Server(vm, target, chain[depth:], share=True, connections=2)) as below,
        ):
            if below.size < above.size:
                return False
            with closing(Reader(above)) as one, closing(Reader(below)) as other:
                same = all(
                    one.pread(at, length) == other.pread(at, length)
                    for extent in extents(above, depth)
                    for at in range(extent.start, extent.end, _STEP)
                    for length in [min(_STEP, extent.end - at)]
                )
        if same:
            _sync(chain[depth].path)
        return same
    except (ChainBroken, CaptureFailed, DiskReadFailed, OSError, ValueError):
        return None


def _sync(path: str) -> None:
    """What QEMU did not live to flush may be in this host's memory only."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
