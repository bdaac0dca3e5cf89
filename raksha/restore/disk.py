"""Restore disks: all that were asked for, or none.

::

    claim every target, plan every disk; is there room for all of them?
    for each: prepare the target, fetch and write
    make all of them durable and give them their names
    after any error or a cancel: remove what was made

A cluster is written only after it was verified, so what gets its name is the disk of the restore point, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from raksha.errors import Damaged, DeviceHalfWritten, DiskLost
from raksha.restore.context import Context
from raksha.restore.fetch import fetch
from raksha.restore.files import require_space
from raksha.restore.plan import Plan
from raksha.restore.source import DiskSource, Pages
from raksha.restore.targets import Target


class DiskResult(Struct, frozen=True):
    """One restored disk."""

    disk: str
    target: Path
    #: bytes of the disk
    size: int
    #: plain bytes that were written; the rest reads as zeroes, or shows through from an image below
    written: int
    #: objects that were fetched
    segments: int


class DiskJob(Struct, frozen=True):
    """A disk and where it goes."""

    source: DiskSource
    target: Target
    #: what to restore of it; None: all of it
    pages: Pages | None = None


def restore_disk(source: DiskSource, target: Target, context: Context) -> DiskResult:
    """One disk. See `restore_disks`."""
    return restore_disks([DiskJob(source, target)], context)[0]


def restore_disks(jobs: Sequence[DiskJob], context: Context, *, settle: bool = True) -> list[DiskResult]:
    """All disks or none. Without `settle` they are part of something larger, and the caller settles the targets.

    Raises `DiskLost` naming the object that is missing or damaged, `TargetExists`, `TargetUnusable`,
    `NoSpaceForRestore`, `TargetFailed`, `Interrupted`, and what the store raises; `DeviceHalfWritten` instead of any of
    these once a device was written to.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_discarding(jobs))
        for job in jobs:
            job.target.claim()
        plans = [stack.enter_context(_planned(job, context)) for job in jobs]
        require_space([room for job, plan in zip(jobs, plans, strict=True) for room in _room(job, plan)])
        results = [_write(job, plan, context) for job, plan in zip(jobs, plans, strict=True)]
        for job in jobs:
            job.target.finish()
        if settle:
            for job in jobs:
                job.target.settle()
        return results


def _planned(job: DiskJob, context: Context) -> Plan:
    context.check()
    with losing(job.source):
        return Plan(job.pages or job.source.pages(), job.source.readers, context.spool_dir)


def _room(job: DiskJob, plan: Plan) -> list[tuple[Path, int]]:
    if job.target.overhead is None:
        return []
    size = plan.geometry.cluster_size
    # some clusters for the first of each kind of table
    return [(job.target.path.parent, plan.clusters * (size + job.target.overhead) + 16 * size)]


def _write(job: DiskJob, plan: Plan, context: Context) -> DiskResult:
    source, target = job.source, job.target
    context.progress.begin(f"{source.vm}:{source.disk}", plan.data_bytes)
    try:
        with losing(source):
            target.prepare(job.pages or source.pages(), context)
            fetch(plan, source, target, context)
    finally:
        context.progress.end()
    return DiskResult(source.disk, target.path, source.geometry.size, plan.data_bytes, plan.segments)


@contextlib.contextmanager
def losing(source: DiskSource) -> Iterator[None]:
    """Says of damage in the vault which disk it costs."""
    try:
        yield
    except Damaged as error:
        name = error.fields.get("name")
        raise DiskLost(disk=source.disk, vm=source.vm, run=source.run, object=name, detail=str(error)) from error


@contextlib.contextmanager
def _discarding(jobs: Sequence[DiskJob]) -> Iterator[None]:
    """After an error nothing is left of any target, or the error says what is."""
    try:
        yield
    except BaseException as error:
        for job in jobs:
            job.target.discard()
        spoiled = [str(job.target.path) for job in jobs if job.target.spoiled]
        if spoiled:
            raise DeviceHalfWritten(target=", ".join(spoiled), detail=str(error) or type(error).__name__) from error
        raise
