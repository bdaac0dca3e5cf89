"""BOOT: does a VM of a restore point come up? Its disks are restored to a directory of their own, and it is started
where it reaches nobody (`boot_xml`), until it says that it is up, or its time is over.

::

    room for the disks and the memory?       else the task fails, and nothing is said of the restore point
    restore all disks                        data that is lost in the vault: not proven
    start, without a network                 it does not start: not proven
    a marker on the console, or the agent    proven
    it ends, writes without end, is silent   not proven; `unknown` where nothing could have told
    destroy it, remove its disks             whatever happened

The one VM that was backed up is not touched or asked. It ends when the lease is over: somebody else may begin it anew.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from raksha.agent import boot_scratch
from raksha.agent.boot_definition import definition_of
from raksha.agent.host import Host
from raksha.agent.sources import disk_sources
from raksha.agent.work import End, Work
from raksha.errors import (
    BadArgument,
    Damaged,
    Interrupted,
    LibvirtFailed,
    NoMemoryForTest,
    RunNotFound,
    VmNotFound,
)
from raksha.restore.disk import restore_disks
from raksha.restore.files import PartFile, require_space
from raksha.restore.machine import Placement, disk_jobs
from raksha.states import BootOutcome, ProvenBy
from raksha.tasks import Booted, BootOrder
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import VMMetadata
from raksha.virt.libvirt.boot_host import boot_host
from raksha.virt.libvirt.boot_xml import MIB, BootLimits, BootPlan, boot_plan
from raksha.virt.libvirt.connection import Connection, Console, Guest

#: bytes that the guest may write
GROWTH = 4 << 30
#: seconds between two looks at the console, and at the rest
_POLL, _LOOK = 0.2, 1.0
#: of the console at one look: there are guests that never stop
_READS = 64
#: that an agent has for its answer
_PING = 2
_MEMORY = Path("/proc/meminfo")


class BootTask:
    """One use."""

    def __init__(self, host: Host, work: Work, order: BootOrder) -> None:
        self._host = host
        self._work = work
        self._order = order
        self._uri = host.settings.libvirt_uri

    def __call__(self) -> Booted:
        """Raises what restores raise, but damage; `NoMemoryForTest`, `HypervisorUnavailable`, `Interrupted`."""
        boot_scratch.sweep(self._uri, self._host.boot_dir())
        identity = str(uuid.uuid4())
        with boot_scratch.scratch(self._uri, self._host.boot_dir(), identity) as scratch:
            try:
                with self._host.catalog(self._work) as catalog:
                    machine, disks, nvram = self._restore(catalog, scratch)
            except Damaged as error:
                return _failed(error.code, str(error))
            require_space([(scratch, GROWTH)])
            with closing(Connection(self._uri)) as connection:
                plan = self._plan(connection, machine, identity, scratch, disks, nvram)
                require_memory(plan.memory)
                return self._boot(connection, plan, scratch)

    def _restore(self, catalog: Catalog, scratch: Path) -> tuple[VMMetadata, dict[str, Path], Path | None]:
        order = self._order
        self._work.progress.step("restoring")
        run = catalog.run(order.backupjob, order.backupjobrun)
        if run is None:
            raise RunNotFound(run=order.backupjobrun)
        summary = catalog.vm(run, order.vm)
        machine = catalog.machine(run, summary)
        sources = disk_sources(catalog, run, summary, ())
        disks = {source.disk: scratch / f"disk{number}.qcow2" for number, source in enumerate(sources)}
        context = self._host.context(self._work)
        with ExitStack() as stack:
            jobs, _ = disk_jobs([Placement(source, disks[source.disk]) for source in sources], context, stack)
            restore_disks(jobs, context)
        if machine.nvram is None:
            return machine, disks, None
        nvram = PartFile(scratch / "nvram.fd")
        nvram.write([machine.nvram], 0)
        nvram.publish()
        nvram.settle()
        return machine, disks, nvram.path

    def _plan(
        self, connection: Connection, machine: VMMetadata, identity: str, scratch: Path, disks: dict[str, Path],
        nvram: Path | None,
    ) -> BootPlan:  # fmt: skip
        definition = definition_of(machine)
        if definition is None:
            raise BadArgument(argument="vm", detail="it is a volume, which no machine goes with")
        agent = self._host.agent
        limits = BootLimits(agent.test_restore_memory * MIB, agent.test_restore_vcpus)
        return boot_plan(definition, identity, scratch, disks, nvram, boot_host(connection, definition), limits)

    def _boot(self, connection: Connection, plan: BootPlan, scratch: Path) -> Booted:
        self._check()
        self._work.progress.step("booting")
        try:
            guest = connection.start_temporary(plan.xml, plan.name)
            with closing(guest.console()) as console:
                guest.resume()
                return _Watch(connection, guest, console, self._order, scratch, self._check)()
        except LibvirtFailed as error:
            connection.guests()  # a libvirt that went away says nothing of the VM
            return _failed("does_not_start", str(error))

    def _check(self) -> None:
        """Raises `Interrupted`."""
        if not self._work.has_lease():
            self._work.end(End.STALE)
        self._work.check()
        if self._work.over.wait(_POLL):
            raise Interrupted


class _Watch:
    """Waits for a VM that was started. One use."""

    def __init__(
        self, connection: Connection, guest: Guest, console: Console, order: BootOrder, scratch: Path,
        check: Callable[[], None],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._guest = guest
        self._console = console
        self._order = order
        self._scratch = scratch
        self._check = check
        self._began = time.monotonic()
        self._had = _used(scratch)
        self._tail = b""

    def __call__(self) -> Booted:
        """Raises `Interrupted`, `HypervisorUnavailable`."""
        look_at = 0.0
        while True:
            self._check()
            proof = self._seen()
            now = time.monotonic()
            if proof is None and now >= look_at:
                look_at = now + _LOOK
                proof = self._looked()
            if proof is not None:
                return proof
            if now - self._began > self._order.timeout:
                return self._silent()

    def _seen(self) -> Booted | None:
        """What the console has, or that it has gone. It is read in any case: the guest would wait."""
        marker = (self._order.marker or "").encode()
        for _ in range(_READS):
            if not (chunk := self._console.read()):
                break
            if marker and marker in self._tail + chunk:
                return self._end(BootOutcome.PROVEN, proven_by=ProvenBy.MARKER)
            self._tail = (self._tail + chunk)[-len(marker) :] if marker else b""
        return None

    def _looked(self) -> Booted | None:
        if not self._runs():
            return self._end(BootOutcome.FAILED, reason=_why("ended", "it shut down, or crashed, before it was up"))
        if _used(self._scratch) - self._had > GROWTH:
            return self._end(BootOutcome.FAILED, reason=_why("writes", f"it wrote more than {GROWTH >> 30} GiB"))
        if self._order.marker is None and self._guest.agent_answers(_PING):
            return self._end(BootOutcome.PROVEN, proven_by=ProvenBy.GUEST_AGENT)
        return None

    def _runs(self) -> bool:
        """Raises `HypervisorUnavailable`: nobody knows."""
        try:
            self._connection.guest(self._guest.uuid)
        except VmNotFound:  # without a definition it is gone when it ends
            return False
        return True

    def _silent(self) -> Booted:
        seconds = self._order.timeout
        if self._order.marker is not None:
            detail = f"the marker was not on its console within {seconds} s"
            return self._end(BootOutcome.FAILED, reason=_why("no_marker", detail))
        if self._order.expects_agent:
            detail = f"its guest agent, which answered when it was backed up, was silent for {seconds} s"
            return self._end(BootOutcome.FAILED, reason=_why("no_agent", detail))
        detail = f"it ran for {seconds} s; no guest agent is known to be in it, and no marker was asked for"
        return self._end(BootOutcome.UNKNOWN, reason=_why("nothing_to_tell", detail))

    def _end(
        self, outcome: BootOutcome, *, proven_by: ProvenBy | None = None, reason: dict[str, str] | None = None
    ) -> Booted:
        seconds = round(time.monotonic() - self._began, 1)
        return Booted(outcome=outcome, proven_by=proven_by, reason=reason, seconds=seconds)


def require_memory(wanted: int, meminfo: Path = _MEMORY) -> None:
    """Running VMs come first: half as much again has to be free. Raises `NoMemoryForTest`."""
    told = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(told["MemAvailable"].split()[0]) * 1024
    if free < wanted * 3 // 2:
        raise NoMemoryForTest(free=free, wanted=wanted * 3 // 2)


def _used(scratch: Path) -> int:
    """Bytes that its files take."""
    with os.scandir(scratch) as entries:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)


def _failed(code: str, message: str) -> Booted:
    return Booted(outcome=BootOutcome.FAILED, reason=_why(code, message))


def _why(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
