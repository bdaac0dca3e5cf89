"""Reading a frozen layer: one `qemu-nbd` per disk, and libnbd on top of it.

The server gets the whole chain spelt out, driver by driver, so that it probes nothing and opens nothing that a header
names. It is read-only, listens on a socket in a directory of its own (0700), and dies with this process.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import nbd

from raksha.errors import CaptureFailed, DiskReadFailed
from raksha.virt.libvirt.domain_xml import Layer

_DEPTH = "qemu:allocation-depth"
#: to be followed by the name of a dirty bitmap
DIRTY = "qemu:dirty-bitmap:"

#: bytes; NBD servers take no larger read
_READ_STEP = 32 * 1024**2
#: seconds a server may take to open its chain
_START = 30.0
#: qemu-nbd takes and frees a buffer for each read. By default, glibc gives such memory back to the kernel each time,
#: and clearing new pages costs the server more than twice as much as the reading itself.
_TUNABLES = f"glibc.malloc.mmap_threshold={2 * _READ_STEP}:glibc.malloc.trim_threshold={8 * _READ_STEP}"

#: of directories that hold a socket
_PREFIX = "raksha-nbd-"

# A child's "die with your parent" follows the thread that started it, so that thread must never end before us.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raksha-spawn")


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that is killed when this process ends, however that comes about, and not by Ctrl-C before."""
    full = ["setpriv", "--pdeathsig", "KILL", *command]
    return _spawner.submit(lambda: subprocess.Popen(full, start_new_session=True, **options)).result()


def node(chain: Sequence[Layer], *, share: bool) -> dict[str, Any]:
    """The chain as QEMU's block layer wants it, top first. `share`: take no locks (for a VM that is shut off)."""
    description: dict[str, Any] | None = None
    for layer in reversed(chain):
        driver = "host_device" if layer.kind == "block" else "file"
        upper: dict[str, Any] = {
            "driver": layer.format,
            "read-only": True,
            "file": {"driver": driver, "filename": layer.path},
        }
        if layer.format != "raw":
            upper["backing"] = description
        description = upper
    if description is None:
        raise ValueError("a chain has at least one layer")
    if share:
        description["force-share"] = True
    return description


class Source(Protocol):
    """A frozen disk that some NBD server serves."""

    vm: str
    target: str
    #: bytes, as the guest saw the disk
    size: int
    #: the context that tells changes: allocation depth, or a dirty bitmap (as depth 1); None: nothing does
    changes: str | None
    #: the disk below is written to while it is asked about, and the server keeps what was there
    moving: bool
    #: called when reading fails; it may raise an error that says more
    explain: Callable[[], None] | None

    def connect(self, contexts: Sequence[str] = ()) -> nbd.NBD:
        """A connection that can tell these. Raises `CaptureFailed`."""


class Server:
    """`qemu-nbd` over one chain, and a dirty `bitmap` of its top. Raises `CaptureFailed` when it cannot open it.

    `chain` may also be a node of QEMU's block layer, for what is no file or device of this host.

    `explain` is called when a read fails; it may raise an error that says more.
    """

    moving = False

    def __init__(
        self,
        vm: str,
        target: str,
        chain: Sequence[Layer] | Mapping[str, Any],
        *,
        share: bool,
        connections: int,
        explain: Callable[[], None] | None = None,
        bitmap: str | None = None,
    ) -> None:
        self.vm = vm
        self.changes: str | None = DIRTY + bitmap if bitmap else _DEPTH
        self.explain = explain
        self.target = target
        self._directory, self._held = own_directory()
        self.socket = self._directory / "nbd"
        self._errors = self._directory / "errors"
        command = ["qemu-nbd", "--read-only", "--allocation-depth", "--persistent", f"--shared={connections}"]
        command += ["--bitmap", bitmap] if bitmap else []
        described = chain if isinstance(chain, Mapping) else node(chain, share=share)
        command += ["--socket", str(self.socket), "--cache=writeback", "json:" + json.dumps(described)]
        environment = os.environ | {"GLIBC_TUNABLES": _TUNABLES}
        with self._errors.open("wb") as errors:
            self._process = spawn(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment
            )
        self._closing = threading.Lock()
        self._serving = False
        try:
            #: bytes, as the guest saw the disk
            self.size = self._first_answer()
            self._serving = True
        except BaseException:
            self.close()
            raise

    def _first_answer(self) -> int:
        # The socket is there before anybody listens, and that before the chain is open: only an answer proves it.
        deadline = time.monotonic() + _START
        while True:
            running = self._process.poll() is None
            try:
                handle = self.connect()
            except CaptureFailed:
                if not running or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                size = int(handle.get_size())
                hang_up(handle)
                return size

    def connect(self, contexts: Sequence[str] = ()) -> nbd.NBD:
        handle = nbd.NBD()
        try:
            for context in contexts:
                handle.add_meta_context(context)
            handle.connect_unix(str(self.socket))
        except nbd.Error as error:
            if self._serving and self.explain is not None:
                self.explain()
            raise self._failed(error.string) from error
        return handle

    def _failed(self, detail: str) -> CaptureFailed:
        # After `close` there is neither server nor file.
        said = self._errors.read_text("utf-8", "replace")[:2000].strip() if self._errors.exists() else ""
        return CaptureFailed(vm=self.vm, detail=f"disk {self.target} cannot be opened: {said or detail}")

    def close(self) -> None:
        with self._closing:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            shutil.rmtree(self._directory, ignore_errors=True)
            if self._held >= 0:
                os.close(self._held)
                self._held = -1


def _run_dir() -> str:
    """A short path: a socket's name has 107 bytes at most."""
    wanted = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() else "/run"
    return wanted if wanted and len(wanted) < 60 and os.access(wanted, os.W_OK) else "/tmp"  # noqa: S108


def own_directory() -> tuple[Path, int]:
    """A new directory for a socket, and a descriptor that holds its lock: whoever gets the lock knows that we are dead.

    Not by the process id: another container may share the directory and not see our processes.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_run_dir()))
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                return path, held
        # a sweep came between
        os.close(held)


def sweep() -> None:
    """Remove the socket directories of processes that were killed."""
    for directory in Path(_run_dir()).glob(f"{_PREFIX}*"):
        try:
            held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone, another user's, or none of ours
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


class Reader:
    """A `CaptureReader` for one thread."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._handle: nbd.NBD | None = source.connect()
        # after an error nothing of the buffer is used, so it need not be cleared before
        self._handle.set_pread_initialize(False)

    def pread(self, offset: int, length: int) -> bytes | bytearray:
        if self._handle is None:
            raise ValueError("reader is closed")
        try:
            parts = [self._handle.pread(step, at) for at, step in _steps([(offset, length)])]
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except nbd.Error as error:
            raise read_failed(self._source, offset, error) from error

    def pread_into(self, buffer: bytearray, stretches: Sequence[tuple[int, int]]) -> None:
        if self._handle is None:
            raise ValueError("reader is closed")
        view = memoryview(buffer)
        asked, place = [], 0
        try:
            # all are under way before the first is waited for; the handle keeps what it is to fill
            for offset, length in _steps(stretches):
                part = nbd.Buffer.from_buffer(view[place : place + length])
                asked.append(self._handle.aio_pread(part, offset))
                place += length
            while self._handle.aio_in_flight():
                self._handle.poll(-1)
            for cookie in asked:
                self._handle.aio_command_completed(cookie)
        except nbd.Error as error:
            # QEMU hangs up instead of saying which one it could not read: find out
            hang_up(self._handle)
            try:
                self._handle = self._source.connect()
            except CaptureFailed:
                raise read_failed(self._source, stretches[0][0], error) from error
            place = 0
            for offset, length in _steps(stretches):
                view[place : place + length] = self.pread(offset, length)
                place += length

    def close(self) -> None:
        if self._handle is not None:
            hang_up(self._handle)
            self._handle = None


def _steps(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same, in reads that a server takes."""
    for offset, length in stretches:
        for at in range(offset, offset + length, _READ_STEP):
            yield at, min(_READ_STEP, offset + length - at)


def hang_up(handle: nbd.NBD) -> None:
    # A server that has died needs no good-bye; the handle itself ends with its last reference.
    with suppress(nbd.Error):
        handle.shutdown()


def read_failed(source: Source, offset: int, error: nbd.Error) -> DiskReadFailed:
    if source.explain is not None:
        source.explain()
    return DiskReadFailed(disk=source.target, vm=source.vm, offset=offset, detail=error.string)
