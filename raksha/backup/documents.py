"""What is told about a captured VM: its line in a `run.json`, and its `VMMetadata`."""

from __future__ import annotations

from collections.abc import Iterable

from raksha.server import AttachedVolume, Server
from raksha.vault.metadata import FORMAT, BackupMetadata, ResourceSummary, VMMetadata, VmSummary
from raksha.virt.capture import Capture


def vm_summary(capture: Capture, disks: Iterable[BackupMetadata]) -> VmSummary:
    """`disks`: those of this VM."""
    return VmSummary(
        vm=capture.machine.uuid,
        name=capture.machine.name,
        engine=capture.engine,
        power=capture.machine.power,
        consistency=capture.consistency,
        taken_at=capture.taken_at,
        frozen_seconds=capture.frozen_seconds,
        resources=[
            ResourceSummary(
                resource=disk.resource,
                size=disk.size,
                kind=disk.kind,
                parent=disk.parent,
                mode=disk.mode,
                reason=disk.reason,
                volume=disk.volume,
            )
            for disk in disks
        ],
    )


def machine_document(
    capture: Capture, server: Server | None = None, volume: AttachedVolume | None = None
) -> VMMetadata:
    """`server`, `volume`: what its cloud says of it."""
    machine = capture.machine
    return VMMetadata(
        format=FORMAT,
        vm=machine.uuid,
        name=machine.name,
        power=machine.power,
        domain_xml=machine.domain_xml,
        live_xml=machine.live_xml,
        nvram=machine.nvram,
        files=dict(machine.files),
        server=server,
        volume=volume,
    )
