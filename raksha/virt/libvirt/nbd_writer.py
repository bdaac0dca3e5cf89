"""Writing to a disk image that nobody uses: one `qemu-nbd` over it, and libnbd on top.

For images that are no files of this host (Ceph), and for files that keep their place. The caller spells out the node
of QEMU's block layer, so nothing is probed. QEMU takes its locks: a file that a VM has open is refused, and no VM
starts on it meanwhile. The server listens on a socket in a directory of its own (0700), and dies with this process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

import nbd

from raksha.errors import TargetFailed, TargetUnusable
from raksha.virt.libvirt.nbd import hang_up, own_directory, spawn

_ALLOCATION = "base:allocation"
#: of the context: reads as zeroes
_ZERO = 2
#: bytes of one write, one zeroing, and one question what is there
_WRITE, _ZERO_STEP, _ASK = 8 << 20, 64 << 20, 1 << 30
#: seconds to open the image, and to let it go
_START, _STOP = 60.0, 60.0


class WritableImage:
    """For any thread; each has a connection of its own. A context manager."""

    def __init__(self, name: str, node: Mapping[str, Any], connections: int) -> None:
        """`name`: for errors. `node`: format on top of protocol. Raises `TargetUnusable`."""
        self._name = name
        self._directory, self._held = own_directory()
        self._socket = self._directory / "nbd"
        self._errors = self._directory / "errors"
        wanted = "json:" + json.dumps({**node, "discard": "unmap"})
        # not persistent: it ends with its last connection, and our first one stays to the end
        command = ["qemu-nbd", f"--shared={connections + 1}", "--socket", str(self._socket)]
        command += ["--cache=writeback", wanted]
        with self._errors.open("wb") as errors:
            self._process = spawn(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        self._own = threading.local()
        self._handles: list[nbd.NBD] = []
        self._lock = threading.Lock()
        try:
            #: bytes
            self.size = self._first_answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WritableImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_answer(self) -> int:
        deadline = time.monotonic() + _START
        while True:
            running = self._process.poll() is None
            try:
                return int(self._handle().get_size())
            except nbd.Error as error:
                if not running or time.monotonic() > deadline:
                    said = self._errors.read_text("utf-8", "replace")[-1000:].strip()
                    raise TargetUnusable(target=self._name, detail=said or error.string) from error
                time.sleep(0.005)

    def _handle(self) -> nbd.NBD:
        found: nbd.NBD | None = getattr(self._own, "handle", None)
        if found is None:
            found = nbd.NBD()
            found.add_meta_context(_ALLOCATION)
            found.connect_unix(str(self._socket))
            self._own.handle = found
            with self._lock:
                self._handles.append(found)
        return found

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Raises `TargetFailed`."""
        view = memoryview(data)
        try:
            for at in range(0, len(view), _WRITE):
                self._handle().pwrite(view[at : at + _WRITE], offset + at)
        except nbd.Error as error:
            raise self._failed(error) from error

    def make_zero(self, offset: int, length: int) -> bool:
        """Let a range read as zeroes; where it does already nothing is written. Whether anything was.

        Raises `TargetFailed`.
        """
        written = False
        try:
            for start, stop in self._not_zero(offset, length):
                for at in range(start, stop, _ZERO_STEP):
                    self._handle().zero(min(_ZERO_STEP, stop - at), at)
                    written = True
        except nbd.Error as error:
            raise self._failed(error) from error
        return written

    def _not_zero(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(start, end) of what is not known to read as zeroes."""
        handle = self._handle()
        if not handle.can_meta_context(_ALLOCATION):
            return [(offset, offset + length)]
        found: list[tuple[int, int]] = []
        at, end = offset, offset + length

        def note(_context: str, start: int, entries: list[int], _error: object) -> int:
            nonlocal at
            at = start
            for size, flags in zip(entries[::2], entries[1::2], strict=True):
                if not flags & _ZERO:
                    found.append((at, min(at + size, end)))
                at += size
            return 0

        while at < end:
            before = at
            handle.block_status(min(_ASK, end - at), at, note)
            if at <= before:
                raise TargetFailed(target=self._name, detail="qemu-nbd does not tell what is there")
        return found

    def flush(self) -> None:
        """Make it durable. Raises `TargetFailed`."""
        try:
            self._handle().flush()
        except nbd.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: nbd.Error) -> TargetFailed:
        said = self._errors.read_text("utf-8", "replace")[-1000:].strip() if self._errors.exists() else ""
        return TargetFailed(target=self._name, detail=said or error.string)

    def close(self) -> None:
        """No process has it open any more. May be called twice."""
        with self._lock:
            handles, self._handles = self._handles, []
        for handle in handles:
            hang_up(handle)
        try:
            # it lets the image go properly: for one in Ceph, others would have to wait. It is not told by a signal, as
            # those that our process has blocked are blocked for it
            self._process.wait(_STOP if handles else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
