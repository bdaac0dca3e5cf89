"""From the extents of a capture to pieces of work on the cluster grid. Pure.

Promises: pieces come in guest order and don't overlap; a cluster is called zero only if zero extents cover it
wholly; memory is 9 bytes per run of clusters, whatever the size of the disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from msgspec import Struct

from raksha.types import Extent, ExtentKind, Geometry


class ClusterRun(Struct, frozen=True):
    """Consecutive clusters of one kind."""

    first: int
    count: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.first + self.count


class ClusterRuns:
    """The runs of one disk, kept compactly, since they are walked more than once."""

    def __init__(self, extents: Iterable[Extent], geometry: Geometry) -> None:
        self.geometry = geometry
        self._first = array("Q")
        self._count = array("Q")
        self._kind = bytearray()
        #: clusters to read
        self.data_clusters = 0
        for piece in _pieces(extents, geometry):
            self._add(piece)

    def _add(self, run: ClusterRun) -> None:
        if run.kind is ExtentKind.DATA:
            self.data_clusters += run.count
        if self._kind and self._kind[-1] == run.kind and self._first[-1] + self._count[-1] == run.first:
            self._count[-1] += run.count
            return
        self._first.append(run.first)
        self._count.append(run.count)
        self._kind.append(run.kind)

    def __iter__(self) -> Iterator[ClusterRun]:
        for first, count, kind in zip(self._first, self._count, self._kind, strict=True):
            yield ClusterRun(first, count, ExtentKind(kind))


def _pieces(extents: Iterable[Extent], geometry: Geometry) -> Iterator[ClusterRun]:
    """Extents rounded to clusters; where two meet in one cluster, it is data."""
    done = 0
    for extent in extents:
        for piece in _rounded(extent, geometry):
            first = max(piece.first, done)
            if piece.end > first:
                yield ClusterRun(first, piece.end - first, piece.kind)
                done = piece.end
    if done > geometry.clusters:
        raise ValueError("an extent ends beyond the disk")


def _rounded(extent: Extent, geometry: Geometry) -> Iterator[ClusterRun]:
    size = geometry.cluster_size
    outer, outer_end = extent.start // size, -(-extent.end // size)
    if extent.kind is ExtentKind.DATA:
        yield ClusterRun(outer, outer_end - outer, ExtentKind.DATA)
        return
    inner = -(-extent.start // size)
    inner_end = geometry.clusters if extent.end >= geometry.size else extent.end // size
    if inner_end <= inner:  # it covers no cluster wholly
        yield ClusterRun(outer, outer_end - outer, ExtentKind.DATA)
        return
    if outer < inner:
        yield ClusterRun(outer, inner - outer, ExtentKind.DATA)
    yield ClusterRun(inner, inner_end - inner, ExtentKind.ZERO)
    if inner_end < outer_end:
        yield ClusterRun(inner_end, outer_end - inner_end, ExtentKind.DATA)


def aligned(runs: Iterable[ClusterRun], step: int) -> Iterator[list[ClusterRun]]:
    """Runs cut at multiples of `step` clusters: equal disks give equal pieces. Stretches of zeroes stay whole."""
    piece: list[ClusterRun] = []
    border = 0
    for run in runs:
        first = run.first
        while first < run.end:
            if first >= border and piece:
                yield piece
                piece = []
            border = (first // step + 1) * step
            end = run.end if run.kind is ExtentKind.ZERO else min(run.end, border)
            piece.append(ClusterRun(first, end - first, run.kind))
            first = end
    if piece:
        yield piece


def gathered(runs: Iterable[ClusterRun], step: int, most: int) -> Iterator[list[ClusterRun]]:
    """Runs put together until there are `step` clusters of data to read, or `most` runs."""
    piece: list[ClusterRun] = []
    room = step
    for run in runs:
        first = run.first
        while first < run.end:
            end = run.end if run.kind is ExtentKind.ZERO else min(run.end, first + room)
            piece.append(ClusterRun(first, end - first, run.kind))
            room -= end - first if run.kind is ExtentKind.DATA else 0
            first = end
            if not room or len(piece) == most:
                yield piece
                piece, room = [], step
    if piece:
        yield piece


def with_gaps_as_zero(runs: Iterable[ClusterRun], clusters: int) -> Iterator[ClusterRun]:
    """Every cluster of the disk in exactly one run: what no run names reads as zero."""
    done = 0
    for run in runs:
        if run.first > done:
            yield ClusterRun(done, run.first - done, ExtentKind.ZERO)
        yield run
        done = run.end
    if done < clusters:
        yield ClusterRun(done, clusters - done, ExtentKind.ZERO)
