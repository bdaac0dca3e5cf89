"""A thin layer over libvirt: typed errors, an event loop, and the few calls that Raksha makes on a domain.

Every method is one libvirt call (or a loop of one) and raises `LibvirtFailed` with libvirt's own message.
The event loop is one daemon thread of the process; events are a convenience, whoever waits for one polls as well.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import libvirt
import libvirt_qemu

from raksha import crash
from raksha.errors import HypervisorUnavailable, LibvirtFailed, VmNotFound

_Result = TypeVar("_Result")

#: seconds between looks at a block job while no event arrives
_POLL = 1.0

#: how often a call is made that libvirt cannot carry out because it gives a name in QEMU a second time
_NAMINGS = 8

#: seconds between, and number of, signs of life asked of libvirtd before a call is given up
_KEEPALIVE = (5, 6)

#: bytes of a console that are read at once
_CONSOLE = 65536

SNAPSHOT_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)

JOB_COMPLETED = libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED
JOB_READY = libvirt.VIR_DOMAIN_BLOCK_JOB_READY


@lru_cache(maxsize=1)
def _start_event_loop() -> None:
    """Must run before the first connection is opened."""
    # libvirt prints every error to stderr unless it has a handler; ours are raised.
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt-events", daemon=True).start()


class Guest:
    """One domain."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain
        self.uuid: str = domain.UUIDString()
        self.name: str = domain.name()

    def _call(self, action: str, function: Callable[..., _Result], *arguments: Any) -> _Result:
        try:
            return function(*arguments)
        except libvirt.libvirtError as error:
            raise LibvirtFailed(action=action, vm=self.name, detail=error.get_error_message()) from error

    def _change(self, action: str, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """A call that changes something."""
        with crash.around(f"libvirt.{function.__name__}"):
            return self._call(action, function, *arguments)

    def _open(self, action: str, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """A call for which libvirt has QEMU open files.

        A libvirtd that was killed while it did so has left some open, and has not written down how far it had counted:
        the next one gives their names again, which QEMU refuses, and counts on.
        """
        for _ in range(_NAMINGS - 1):
            try:
                return self._change(action, function, *arguments)
            except LibvirtFailed as error:
                if "Duplicate nodes with node-name" not in error.fields["detail"]:
                    raise
        return self._change(action, function, *arguments)

    # -- what it is ---------------------------------------------------------------------------------

    def live_xml(self) -> str:
        return str(self._call("describe", self._domain.XMLDesc, 0))

    def inactive_xml(self, *, secrets: bool = False) -> str:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0)
        return str(self._call("describe", self._domain.XMLDesc, flags))

    def is_active(self) -> bool:
        return bool(self._call("look up", self._domain.isActive))

    def is_persistent(self) -> bool:
        return bool(self._call("look up", self._domain.isPersistent))

    def power(self) -> str:
        """`running`, `paused` (QEMU is there, the guest stands still) or `shut off`."""
        state, _ = self._call("look up", self._domain.state)
        if not self.is_active():
            return "shut off"
        standing = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_PMSUSPENDED)
        return "paused" if state in standing else "running"

    def has_saved_state(self) -> bool:
        return bool(self._call("look up", self._domain.hasManagedSaveImage))

    def stopped_by_disk(self) -> bool:
        """Whether QEMU stopped the guest because a write failed; it goes on with that write when it is resumed."""
        state, reason = self._call("look up", self._domain.state)
        return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)

    def disks_without_space(self) -> frozenset[str]:
        """Targets of the disks whose last write failed for want of space."""
        errors = self._call("look up disk errors", self._domain.diskErrors)
        return frozenset(disk for disk, error in errors.items() if error == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE)

    def neighbours(self) -> list[Guest]:
        """All domains of the same libvirt, this one included."""
        return [Guest(domain) for domain in self._call("list", self._domain.connect().listAllDomains, 0)]

    def domain_job(self) -> bool:
        """Whether a migration, save, dump or backup is under way."""
        return bool(self._call("look up jobs", self._domain.jobInfo)[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def capacity(self, disk: str) -> int:
        """Bytes that the guest sees; `disk` is a target or `target[index]`."""
        return int(self._call(f"measure disk {disk}", self._domain.blockInfo, disk)[0])

    # -- chains -------------------------------------------------------------------------------------

    def snapshot(self, xml: str) -> None:
        """All disks of `xml` at one instant, or none."""
        self._open("make a snapshot", self._domain.snapshotCreateXML, xml, SNAPSHOT_FLAGS)

    def commit(self, disk: str, base: str, top: str, *, active: bool = False, relative: bool = False) -> None:
        """Start merging the layers above `base` up to `top` into `base`. `active`: `top` is what the VM writes to;
        libvirt refuses if somebody has put another layer above it."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else 0
        flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE if relative else 0
        self._change(f"commit disk {disk}", self._domain.blockCommit, disk, base, top, 0, flags)

    def pivot(self, disk: str) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self._change(f"pivot disk {disk}", self._domain.blockJobAbort, disk, flags)

    def abort_job(self, disk: str) -> None:
        """Give a block job up. Returns when it is gone; chain and layers stay."""
        self._change(f"abort the job of disk {disk}", self._domain.blockJobAbort, disk, 0)

    def block_job(self, disk: str) -> dict[str, int] | None:
        """`cur` and `end` of the disk's job, or None."""
        return self._call(f"look up jobs of disk {disk}", self._domain.blockJobInfo, disk, 0) or None

    @contextmanager
    def job_events(self, disk: str) -> Iterator[JobEvents]:
        """Enter before the job is started, so that no event is missed."""
        events: queue.SimpleQueue[int] = queue.SimpleQueue()

        def arrived(_connection: Any, _domain: Any, target: str, _kind: int, status: int, _opaque: Any) -> None:
            if target == disk:
                events.put(status)

        with self._watching(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, arrived):
            yield JobEvents(self, disk, events)

    @contextmanager
    def start_events(self) -> Iterator[threading.Event]:
        """An event that is set when the domain is started meanwhile."""
        started = threading.Event()

        def happened(_connection: Any, _domain: Any, event: int, _detail: int, _opaque: Any) -> None:
            if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
                started.set()

        with self._watching(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, happened):
            yield started

    @contextmanager
    def _watching(self, event: int, function: Callable[..., None]) -> Iterator[None]:
        connection = self._domain.connect()
        handle = self._call("watch", connection.domainEventRegisterAny, self._domain, event, function, None)
        try:
            yield
        finally:
            # A connection that is gone watches nothing any more.
            with suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(handle)

    # -- backups and checkpoints --------------------------------------------------------------------

    def backup_begin(self, xml: str, checkpoint_xml: str | None) -> None:
        """Freeze all disks of `xml` at one instant and serve them, and begin the bitmaps of the checkpoint with it."""
        self._open("begin a backup", self._domain.backupBegin, xml, checkpoint_xml, 0)

    def backup_xml(self) -> str | None:
        """The backup job under way, or None."""
        try:
            return str(self._domain.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            # A VM that was shut off has none either.
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
                return None
            raise LibvirtFailed(action="look up the backup", vm=self.name, detail=error.get_error_message()) from error

    def abort_domain_job(self) -> None:
        """Ends a migration, save, dump or backup: look which one it is before. Returns before it is gone."""
        self._change("end the backup", self._domain.abortJob)

    def checkpoint_redefine(self, xml: str, *, validate: bool) -> bool:
        """Tell libvirt of a checkpoint whose bitmaps are there. With `validate` (of a running VM) False means that a
        bitmap is missing or broken; then libvirt knows no such checkpoint."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE if validate else 0
        try:
            with crash.around("libvirt.checkpointCreateXML"):
                self._domain.checkpointCreateXML(xml, flags)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
                return False
            raise LibvirtFailed(action="use a checkpoint", vm=self.name, detail=error.get_error_message()) from error
        return True

    def checkpoint_delete(self, name: str, *, metadata_only: bool) -> None:
        """Make libvirt forget a checkpoint; its bitmaps go with it (of a running VM), or stay and record on."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if metadata_only else 0
        checkpoint = self._call("look up a checkpoint", self._domain.checkpointLookupByName, name, 0)
        self._change("delete a checkpoint", checkpoint.delete, flags)

    def checkpoint_names(self) -> list[str]:
        """Of the checkpoints that libvirt knows."""
        found = self._call("list checkpoints", self._domain.listAllCheckpoints, 0)
        return [str(checkpoint.getName()) for checkpoint in found]

    # -- guest agent --------------------------------------------------------------------------------

    def agent_timeout(self, seconds: int | None) -> None:
        """How long libvirt waits for an answer of the guest agent; None: its default."""
        value = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT if seconds is None else seconds
        self._change("set the agent's timeout", self._domain.agentSetResponseTimeout, value, 0)

    def fs_freeze(self) -> int:
        """Number of file systems frozen."""
        return int(self._change("freeze file systems", self._domain.fsFreeze))

    def fs_thaw(self) -> int:
        return int(self._change("thaw file systems", self._domain.fsThaw))

    # -- space --------------------------------------------------------------------------------------

    def tell_when_beyond(self, disk: str, size: int) -> None:
        """Tell `growth_events` once, when the file of `disk` (`target[index]`) is written beyond `size` bytes."""
        self._call(f"watch the growth of disk {disk}", self._domain.setBlockThreshold, disk, size, 0)

    @contextmanager
    def growth_events(self, grown: threading.Event) -> Iterator[None]:
        """`grown` is set whenever a file grew beyond what `tell_when_beyond` said."""

        def happened(*_: Any) -> None:
            grown.set()

        with self._watching(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD, happened):
            yield

    # -- life ---------------------------------------------------------------------------------------

    def start(self, *, paused: bool = False) -> None:
        self._change("start", self._domain.createWithFlags, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def resume(self) -> None:
        self._change("resume", self._domain.resume)

    def redefine(self, xml: str) -> None:
        """Replace the persistent definition; a running VM goes on as it is."""
        self._change("define", self._domain.connect().defineXML, xml)

    def destroy(self) -> None:
        """As if the plug was pulled; of a domain without a definition nothing is left."""
        self._change("destroy", self._domain.destroy)

    def agent_answers(self, seconds: int) -> bool:
        """Whether the guest agent answers a ping within so many seconds."""
        try:
            libvirt_qemu.qemuAgentCommand(self._domain, '{"execute":"guest-ping"}', seconds, 0)
        except libvirt.libvirtError:
            return False
        return True

    def console(self) -> Console:
        """What it writes to its first serial console from now on."""
        stream = self._domain.connect().newStream(libvirt.VIR_STREAM_NONBLOCK)
        self._call("open the console", self._domain.openConsole, None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        return Console(stream)

    def undefine(self) -> None:
        """Forget the definition, and the NVRAM file that belongs to it alone."""
        self._change("undefine", self._domain.undefineFlags, libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


class Console:
    """What a guest writes to a serial console. What nobody reads in time, the guest has to wait with."""

    def __init__(self, stream: libvirt.virStream) -> None:
        self._stream = stream

    def read(self) -> bytes:
        """What there is; empty: nothing now, or the guest is gone."""
        try:
            found = self._stream.recv(_CONSOLE)
        except libvirt.libvirtError:
            return b""
        return found if isinstance(found, bytes) else b""

    def close(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.abort()


class JobEvents:
    """Waits for a block job of one disk."""

    def __init__(self, guest: Guest, disk: str, events: queue.SimpleQueue[int]) -> None:
        self._guest = guest
        self._disk = disk
        self._events = events

    def wait(self, timeout: float, *, ready: bool = False) -> int | None:
        """The status that the job came to, or None after `timeout` seconds.

        With `ready`, READY ends the wait as well. Without an event (a daemon that was restarted loses them) a job
        that is no longer there counts as COMPLETED: whoever asked looks at the chain anyway.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                status = self._events.get(timeout=min(_POLL, left))
            except queue.Empty:
                job = self._guest.block_job(self._disk)
                if job is None:
                    return int(JOB_COMPLETED)
                if ready and job["cur"] == job["end"] and job["end"] > 0:
                    return int(JOB_READY)
                continue
            if status != JOB_READY or ready:
                return status
        return None


def check_local(uri: str) -> None:
    """Disks are read as files of this host, so libvirt must be of this host. Raises `HypervisorUnavailable`."""
    parts = urlsplit(uri)
    if parts.netloc or parts.scheme.split("+")[0] not in ("qemu", "kvm"):
        raise HypervisorUnavailable(uri=uri, detail="only QEMU/KVM under a libvirt of this host can be protected")


class Connection:
    """A connection to one hypervisor. Raises `HypervisorUnavailable`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        _start_event_loop()
        try:
            self._connection = libvirt.open(uri)
            self._connection.setKeepAlive(*_KEEPALIVE)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(uri=uri, detail=error.get_error_message()) from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def version(self) -> int:
        """Of libvirt here: major × 1 000 000 + minor × 1000 + release."""
        return int(libvirt.getVersion())

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def guest(self, vm: str) -> Guest:
        """The domain with this UUID or name (a UUID wins). Raises `VmNotFound`."""
        for lookup in (self._connection.lookupByUUIDString, self._connection.lookupByName):
            try:
                return Guest(lookup(vm))
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_NO_DOMAIN,
                    libvirt.VIR_ERR_INVALID_ARG,
                ):
                    raise HypervisorUnavailable(uri=self.uri, detail=error.get_error_message()) from error
        raise VmNotFound(vm=vm, uri=self.uri)

    def guests(self) -> list[Guest]:
        """All domains, running or not, by name."""
        try:
            domains = self._connection.listAllDomains(0)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(uri=self.uri, detail=error.get_error_message()) from error
        return sorted((Guest(domain) for domain in domains), key=lambda guest: guest.name)

    def define(self, xml: str, name: str) -> Guest:
        """Make or replace a persistent definition."""
        try:
            with crash.around("libvirt.defineXML"):
                return Guest(self._connection.defineXML(xml))
        except libvirt.libvirtError as error:
            raise LibvirtFailed(action="define", vm=name, detail=error.get_error_message()) from error

    def start_temporary(self, xml: str, name: str) -> Guest:
        """A domain without a persistent definition, paused, that libvirt destroys when this connection ends."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        try:
            with crash.around("libvirt.createXML"):
                return Guest(self._connection.createXML(xml, flags))
        except libvirt.libvirtError as error:
            raise LibvirtFailed(action="start", vm=name, detail=error.get_error_message()) from error

    def abilities(self, arch: str, machine: str | None) -> dict[str, str]:
        """What this host says that it can do with such machines, as XML by `kvm` and `qemu`; what it cannot, is not
        there."""
        found = {}
        for kind in ("kvm", "qemu"):
            with suppress(libvirt.libvirtError):
                found[kind] = str(self._connection.getDomainCapabilities(None, arch, machine, kind, 0))
        return found
