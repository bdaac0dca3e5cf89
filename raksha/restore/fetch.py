"""Fetch, verify, write: the moving part of a restore.

Each of N threads takes the next segment from the plan, gets the bytes it needs in one request, decodes and verifies
every cluster with its keyed hash, and writes. Only verified clusters are handed to the sink.

Memory: one segment, compressed and plain, per thread. The first error wins: it stops the others and is raised.
Not here: what becomes of a target that is half-written; the caller removes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from raksha.restore.context import Context
from raksha.restore.plan import Entry, Plan, SegmentWork
from raksha.restore.source import DiskSource
from raksha.vault.segment import decode_all

Piece = TypeVar("Piece")


class Sink(Protocol):
    """Takes verified clusters, from several threads."""

    def write(self, cluster: int, data: Sequence[bytes | memoryview]) -> None:
        """Whole clusters that follow each other on the disk, the first one being number `cluster`."""


class Pieces(Generic[Piece]):
    """Hands out work to threads, one piece at a time, until there is none, or it was cancelled or failed elsewhere."""

    def __init__(self, pieces: Iterator[Piece], context: Context) -> None:
        self._pieces = pieces
        self._context = context
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Piece]:
        while not self._stopped.is_set():
            self._context.check()
            with self._lock:
                piece = next(self._pieces, None)
            if piece is None:
                return
            yield piece

    def stop(self) -> None:
        self._stopped.set()


def in_parallel(pieces: Iterator[Piece], task: Callable[[Piece], None], context: Context) -> None:
    """Do `task` for every piece. Raises the first error of any thread, and `Interrupted`; no thread runs on."""
    source = Pieces(pieces, context)

    def drain() -> None:
        for piece in source:
            task(piece)

    with ThreadPoolExecutor(context.workers, thread_name_prefix="raksha-restore") as pool:
        try:
            for finished in as_completed([pool.submit(drain) for _ in range(context.workers)]):
                finished.result()
        finally:
            source.stop()


def fetch(plan: Plan, source: DiskSource, sink: Sink, context: Context) -> None:
    """Write everything in the plan. Raises `Damaged` errors, those of the store and the sink, and `Interrupted`."""
    size = plan.geometry.cluster_size

    def one(piece: SegmentWork) -> None:
        plain, fetched = _clusters(source, piece, size)
        for start, count in _runs(piece.entries):
            run = piece.entries[start : start + count]
            sink.write(run[0].cluster, [plain[entry.index, entry.hash] for entry in run])
        context.progress.advance(len(piece.entries) * size, fetched)

    in_parallel(plan.work(), one, context)


def _clusters(
    source: DiskSource, piece: SegmentWork, cluster_size: int
) -> tuple[dict[tuple[int, bytes], memoryview], int]:
    """The verified plain clusters of a piece of work by index and hash; and the bytes of the one request for them."""
    wanted = {(entry.index, entry.hash): source.hashers[entry.layer] for entry in piece.entries}
    row = piece.segment
    name, ends = row.name, row.offsets()
    start = row.offset(min(wanted)[0])
    last = max(wanted)[0]
    end = row.offset(last) + row.lengths[last]
    body = memoryview(source.store.get(name, start, end - start))
    frames = [body[ends[index] - start : ends[index + 1] - start] for index, _ in wanted]
    hashes = [expected for _, expected in wanted]
    plain = decode_all(frames, hashes, list(wanted.values()), cluster_size, name)
    return dict(zip(wanted, plain, strict=True)), end - start


def _runs(entries: Sequence[Entry]) -> Iterator[tuple[int, int]]:
    """(position, count) of entries whose clusters follow each other on the disk."""
    for _, run in groupby(range(len(entries)), key=lambda at: entries[at].cluster - at):
        positions = list(run)
        yield positions[0], len(positions)
