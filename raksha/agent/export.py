"""Disks of a restore point as plain qcow2 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raksha.agent.sources import disk_key, disk_sources
from raksha.restore.context import Context
from raksha.restore.export import ExportDisk, Exported, export
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import RunDocument, VmSummary


def export_disks(
    catalog: Catalog,
    run: RunDocument,
    vm: VmSummary,
    disks: Sequence[str],
    into: Path,
    context: Context,
    *,
    flatten: bool,
) -> list[Exported]:
    """Of all disks, or of those named. Raises `ResourceNotFound` and what `raksha.restore.export` raises."""
    wanted = [
        ExportDisk(source, [each.resource_key for each in catalog.chain(disk_key(run, vm, source.disk))])
        for source in disk_sources(catalog, run, vm, disks)
    ]
    return export(wanted, into, context, flatten=flatten)
