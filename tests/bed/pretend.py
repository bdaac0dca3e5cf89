"""An agent without a hypervisor: it claims, stores real disks in a real vault, reports and finishes, all by the verbs.

Its VMs are bytes in memory; what each run captured is remembered, to compare restores with.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from raksha.agent.verify_task import carry_out
from raksha.backup.disk import store_disk
from raksha.backup.documents import machine_document, vm_summary
from raksha.backup.pipeline import Destination
from raksha.progress import Progress
from raksha.restore.context import Context
from raksha.rpc import Handler, Verb
from raksha.states import Consistency, ReadMode, TaskKind, TaskState
from raksha.tasks import (
    CLAIM,
    FINISH,
    HEARTBEAT,
    REGISTER,
    REPORT,
    BackupOrder,
    Booted,
    BootOrder,
    Claim,
    Claimed,
    DiskProgress,
    Finish,
    Finished,
    FinishOrder,
    Heartbeat,
    Register,
    Report,
    SeenDisk,
    SeenVm,
    Stored,
    Verified,
    VerifyOrder,
)
from raksha.types import CLUSTER_SIZE, Extent, ExtentKind, ResourceKey
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.recorded import Record
from raksha.virt.capture import BaseImage, Machine
from tests.bed.databases import PROJECT
from tests.unit.backup.disks import MemoryDisk, restored, whole

KINDS = (TaskKind.BACKUP, TaskKind.FINISH, TaskKind.RESTORE, TaskKind.VERIFY, TaskKind.BOOT)
#: contents of disks, by VM and target
Disks = dict[tuple[str, str], bytes]


class PretendCapture:
    """Fulfils `Capture` as far as storing looks at it."""

    engine = "memory"
    frozen_seconds = None

    def __init__(self, vm: str, disks: Sequence[MemoryDisk], taken_at: float, consistency: Consistency) -> None:
        self.consistency = consistency
        self.disks = list(disks)
        self.taken_at = taken_at
        self.machine = Machine(
            uuid=vm, name=f"name of {vm}", domain_xml="<domain/>", live_xml=None, power="running", nvram=b"\0n"
        )


class PretendAgent:
    """`ask`: the handlers of a scheduler, or anything that answers like them."""

    def __init__(
        self,
        ask: Mapping[Verb[Any, Any], Handler],
        host: str,
        spool: Path,
        capacity: int = 8,
        capabilities: dict[str, Any] | None = None,
    ) -> None:
        self.ask = ask
        self.host = host
        self.spool = spool
        self.instance = f"start of {host}"
        self.disks: Disks = {}
        #: what every agent gets to that can: shared between them
        self.storage: Disks = {}
        self.bases: dict[str, BaseImage] = {}
        #: by VM, of those that are not just running
        self.consistency: dict[str, Consistency] = {}
        #: what each run captured
        self.captured: dict[str, Disks] = {}
        #: order and commit number of each FINISH, in their order
        self.finished: list[FinishOrder] = []
        self.orders: list[BackupOrder] = []
        self.verified: list[VerifyOrder] = []
        self.booted: list[BootOrder] = []
        #: what comes of booting a VM
        self.boots: dict[str, Booted] = {}
        self.clock = 1000.0
        able = capabilities or {}
        register = Register(host=host, instance=self.instance, version="1", capacity=capacity, capabilities=able)
        self.id = ask[REGISTER](register).service_id

    def have(self, vm: str, *targets: str, clusters: int = 40, seed: int = 0, base: BaseImage | None = None) -> None:
        """A VM with disks of random data, seen from now on."""
        for target in targets or ("vda",):
            self.disks[vm, target] = random.Random(f"{vm}{target}{seed}").randbytes(clusters * CLUSTER_SIZE)
            if base is not None:
                self.bases[vm] = base
        self.beat()

    def write(self, vm: str, cluster: int, target: str = "vda", seed: int = 1) -> None:
        """The guest writes one cluster."""
        data = bytearray(self.disks[vm, target])
        fresh = random.Random(f"{vm}{cluster}{seed}").randbytes(CLUSTER_SIZE)
        data[cluster * CLUSTER_SIZE : (cluster + 1) * CLUSTER_SIZE] = fresh
        self.disks[vm, target] = bytes(data)

    def beat(self) -> None:
        vms = {}
        for vm, target in sorted(self.disks):
            vms.setdefault(vm, []).append(
                SeenDisk(target=target, size=len(self.disks[vm, target]), base=self.bases.get(vm))
            )
        seen = tuple(
            SeenVm(vm=vm, name=f"name of {vm}", power="running", project_id=PROJECT, disks=tuple(disks))
            for vm, disks in vms.items()
        )
        self.ask[HEARTBEAT](Heartbeat(service_id=self.id, instance=self.instance, load=0, vms=seen))

    def claim(self, limit: int = 8, kinds: Sequence[TaskKind] = KINDS) -> tuple[Claimed, ...]:
        claim = Claim(service_id=self.id, instance=self.instance, kinds=tuple(kinds), limit=limit)
        return self.ask[CLAIM](claim).tasks

    def work(self) -> int:
        """Claim and do everything there is. How many tasks."""
        done = 0
        for task in self.claim():
            self.do(task)
            done += 1
        return done

    def do(self, task: Claimed) -> None:
        if isinstance(task.order, BackupOrder):
            self.finish(task, self.store(task))
        elif isinstance(task.order, FinishOrder):
            self.finished.append(task.order)
            self.finish(task, Finished(warnings=()))
        elif isinstance(task.order, VerifyOrder):
            self.finish(task, self.verify(task))
        elif isinstance(task.order, BootOrder):
            self.booted.append(task.order)
            self.finish(task, self.boots[task.order.vm])

    def verify(self, task: Claimed) -> Verified:
        """As an agent does, without a host."""
        order = task.order
        assert isinstance(order, VerifyOrder) and task.vault is not None
        self.verified.append(order)
        context = Context(self.spool, 2, Progress(), threading.Event())
        with closing(open_store(task.vault.url)) as store:
            catalog = Catalog.open(store).recorded(Record(order.recorded or (), only=True))
            return carry_out(catalog, order, catalog.store, context)

    def finish(self, task: Claimed, result: Any, to: TaskState = TaskState.DONE) -> None:
        self.ask[FINISH](Finish(task_id=task.task_id, epoch=task.epoch, to=to, result=result))

    def store(self, task: Claimed) -> Stored:
        """Capture and store the VM of a claimed task."""
        order = task.order
        assert isinstance(order, BackupOrder) and task.vault is not None
        self.orders.append(order)
        there = {**self.disks, **self.storage}
        mine = {key: data for key, data in there.items() if key[0] == order.vm and key[1] not in order.exclude}
        self.captured.setdefault(order.backupjobrun, {}).update(mine)
        self.clock += 10
        disks = [self._disk(order, *key, mine[key]) for key in sorted(mine)]
        capture = PretendCapture(order.vm, disks, self.clock, self.consistency.get(order.vm, Consistency.CRASH))
        with closing(open_store(task.vault.url)) as store, DedupeIndex() as dedupe:
            catalog = Catalog.open(store)
            assert catalog.vault.id == task.vault.vault_uuid
            for copy in (*order.parents.values(), *order.history, *order.clones):
                metadata = catalog.metadata(copy.key)
                dedupe.pin(metadata.map.digest, catalog.reader(metadata))
            to = Destination(
                store=store, hasher=catalog.hasher(catalog.vault.key_id), dedupe=dedupe, claim=task.claim, workers=2,
                compression_level=1, spool_dir=self.spool, progress=Progress(), cancel=threading.Event(),
            )  # fmt: skip
            made = []
            for number, disk in enumerate(capture.disks, 1):
                key = ResourceKey(order.backupjob, order.backupjobrun, order.vm, disk.target)
                made.append(store_disk(catalog, capture, disk, key, to, order.reasons.get(disk.target)).metadata)
                told = DiskProgress(resource=disk.target, size=disk.size, total=disk.size, done=disk.size, sent=5)
                self.ask[REPORT](
                    Report(task_id=task.task_id, epoch=task.epoch, number=number, step="store", disks=(told,))
                )
        return Stored(vm=vm_summary(capture, made), disks=tuple(made), machine=machine_document(capture))

    def _disk(self, order: BackupOrder, vm: str, target: str, data: bytes) -> MemoryDisk:
        parent = order.parents.get(target)
        base = self.bases.get(vm)
        if parent is None or order.full:
            return MemoryDisk(data, whole(data), target=target, base_image=base)
        old = self.captured[parent.key.backupjobrun][vm, target]
        changed = [
            Extent(start, CLUSTER_SIZE, ExtentKind.DATA)
            for start in range(0, len(data), CLUSTER_SIZE)
            if data[start : start + CLUSTER_SIZE] != old[start : start + CLUSTER_SIZE]
        ]
        delta = MemoryDisk(data, changed, mode=ReadMode.DELTA, reason=None, target=target, base_image=base)
        delta.parent = parent.key.backupjobrun
        return delta


def check_restores(url: str, job: str, agents: Sequence[PretendAgent], spool: Path, runs: Sequence[str]) -> None:
    """Every disk of these runs, restored from the vault alone, has the bytes that were captured."""
    with closing(open_store(url)) as store:
        catalog = Catalog.open(store)
        for run in runs:
            found = catalog.run(job, run)
            assert found is not None, f"{run} is not in the vault"
            there = {(key.vm, key.resource) for key in found.resource_keys()}
            captured = {key: data for agent in agents for key, data in agent.captured.get(run, {}).items()}
            assert there == set(captured)
            for (vm, target), data in captured.items():
                assert restored(catalog, ResourceKey(job, run, vm, target), spool) == data, (run, vm, target)
