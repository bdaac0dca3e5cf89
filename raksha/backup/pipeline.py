"""One disk into the vault: read → zero check → hash → compare → pack → dedupe → compress → put → map.

::

    for piece in pieces(capture):            # aligned 4 MiB (full, compare), or what changed, 4 MiB together
        cells = read(piece)                  # worker thread: clusters that must be in the map, hashed
        for pack in packer.add(cells):       # up to 64 clusters that differ; without a comparison, the piece itself
            row = put(pack)                  # worker thread: unless the vault has this segment
            map += pack, row                 # this thread, in guest order

Where nothing is compared, the two halves are one step of one thread: what it read is still in the processor's cache.

Promises: memory is bounded by the number of workers, whatever the size of the disk; the first error wins and ends
all threads; nothing is visible in the vault but inert segments until the run is committed; a cluster read as
zeroes is never stored.
Does not promise that segments of a failed run are gone: a later collection removes them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct, field

from raksha.backup.plan import ClusterRun, ClusterRuns, aligned, gathered, with_gaps_as_zero
from raksha.errors import Interrupted, ObjectMissing
from raksha.progress import Progress
from raksha.states import ReadMode, Reason
from raksha.types import Buffer, ExtentKind, Geometry
from raksha.vault.chain import Chain, ChainPage
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.map import DATA, MapBuilder
from raksha.vault.segment import HASH_BYTES, ClusterHasher, Codec, SegmentRow, segment_digest
from raksha.vault.store import Store
from raksha.virt.capture import CaptureReader, DiskCapture

#: cells in one pack (runs in one piece), also where nearly all of them are zeroes
_CELLS_MAX = 4096


class Destination(Struct, frozen=True):
    """Where clusters go and how they are written."""

    store: Store
    hasher: ClusterHasher
    dedupe: DedupeIndex
    #: name of the task; part of the name of every segment it writes
    claim: str
    workers: int
    compression_level: int
    spool_dir: Path
    progress: Progress
    #: set by whoever wants the work to end
    cancel: threading.Event


class Cell(Struct, frozen=True):
    """Something that the map has to say: one cluster of data, or a stretch of zeroes."""

    first: int
    count: int
    #: keyed hash of the data; empty for zeroes
    hash: bytes = b""
    #: plain data, zero-padded to a whole cluster; let go as soon as it is stored
    data: Buffer = b""


class Expected(Struct, frozen=True):
    """What the parent's chain holds from cluster `first` on: columns of one page."""

    first: int
    kinds: bytes
    hashes: bytes

    def is_data(self, cluster: int) -> bool:
        return self.kinds[cluster - self.first] == DATA

    def hash(self, cluster: int) -> bytes:
        at = (cluster - self.first) * HASH_BYTES
        return self.hashes[at : at + HASH_BYTES]


class Piece(Struct, frozen=True):
    """Work for one reading task."""

    runs: list[ClusterRun]
    #: None: there is nothing to compare with
    expected: Expected | None


class Pack(Struct):
    """Cells that go into the map together; their data makes one segment."""

    cells: list[Cell] = field(default_factory=list)
    clusters: int = 0


class Stored(Struct, frozen=True):
    cells: list[Cell]
    row: SegmentRow | None
    #: bytes that went to the vault for it
    sent: int


class Moved(Struct, frozen=True):
    """What a disk took, in bytes: see `raksha.vault.metadata.Volume`."""

    read: int
    data: int
    sent: int


class DiskPipeline:
    """Stores one captured disk. One use."""

    def __init__(self, disk: DiskCapture, geometry: Geometry, parent: Chain | None, to: Destination) -> None:
        self._disk = disk
        self._geometry = geometry
        self._to = to
        #: compared with; given where the extents may hold more than what changed (`needs_parent_map`)
        self._parent = parent
        self._page: tuple[int, ChainPage | None] | None = None
        self._local = threading.local()
        self._readers: list[CaptureReader] = []
        self._zero = bytes(geometry.cluster_size)
        self._failed = threading.Event()
        self._window = to.workers * 2

    def run(self, builder: MapBuilder) -> Moved:
        """Fill `builder`. Raises `Interrupted`, `DiskReadFailed`, `VaultError`."""
        runs = ClusterRuns(self._disk.extents(), self._geometry)
        size = self._geometry.cluster_size
        self._to.progress.begin(self._disk.target, runs.data_clusters * size)
        data = sent = 0
        try:
            with ThreadPoolExecutor(self._to.workers, thread_name_prefix="raksha-data") as pool:
                try:
                    for result in self._stored(pool, runs):
                        data += self._take(builder, result)
                        sent += result.sent
                except BaseException:
                    self._failed.set()  # workers stop at their next step; queued work is dropped
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        finally:
            self._to.progress.end()
            for reader in self._readers:
                reader.close()
        return Moved(read=runs.data_clusters * size, data=data * size, sent=sent)

    # -- this thread ------------------------------------------------------------------------------

    def _stored(self, pool: ThreadPoolExecutor, runs: ClusterRuns) -> Iterator[Stored]:
        """Results in guest order; at most a window of work is under way, in memory or waiting."""
        puts: deque[Future[Stored]] = deque()
        for put in self._puts(pool, runs):
            puts.append(put)
            while len(puts) > self._window:
                yield puts.popleft().result()
        while puts:
            yield puts.popleft().result()

    def _puts(self, pool: ThreadPoolExecutor, runs: ClusterRuns) -> Iterator[Future[Stored]]:
        if self._parent is None:  # all that is read is stored: a piece is a pack
            for piece in self._pieces(runs):
                self._check()
                yield pool.submit(self._read_and_put, piece)
            return
        reads: deque[Future[list[Cell]]] = deque()
        packer = Packer(self._geometry.clusters_per_segment)
        for piece in self._pieces(runs):
            self._check()
            reads.append(pool.submit(self._read, piece))
            while len(reads) > self._window:
                yield from self._packed(pool, packer.add(reads.popleft().result()))
        while reads:
            yield from self._packed(pool, packer.add(reads.popleft().result()))
        yield from self._packed(pool, packer.rest())

    def _packed(self, pool: ThreadPoolExecutor, packs: Iterable[Pack]) -> Iterator[Future[Stored]]:
        return (pool.submit(self._put, pack) for pack in packs)

    def _take(self, builder: MapBuilder, result: Stored) -> int:
        """Into the map; the number of data clusters."""
        segment = builder.add_segment(result.row) if result.row is not None else 0
        index = 0
        for first, count, hashes in _stretches(result.cells):
            if hashes:
                builder.add_data(first, segment, index, hashes)
                index += count
            else:
                builder.add_zeros(first, count)
        return index

    def _pieces(self, runs: Iterable[ClusterRun]) -> Iterator[Piece]:
        """Pieces of work, with what the parent has there if that is to be compared. Equal fulls have equal pieces."""
        mode, step = self._disk.mode, self._geometry.clusters_per_segment
        if mode is ReadMode.FULL:  # what a full does not mention is zero
            runs = (run for run in runs if run.kind is ExtentKind.DATA)
        elif mode is ReadMode.COMPARE:
            runs = with_gaps_as_zero(runs, self._geometry.clusters)
        if self._parent is None:
            cut = aligned(runs, step) if mode is ReadMode.FULL else gathered(runs, step, _CELLS_MAX)
            yield from (Piece(piece, None) for piece in cut)
        else:
            for piece in aligned(runs, step):
                yield from self._compared(piece)

    def _compared(self, runs: list[ClusterRun]) -> Iterator[Piece]:
        """Cut further at pages of the parent's map; zeroes over nothing are dropped without touching them."""
        per_page = self._geometry.page_clusters
        for run in runs:
            first = run.first
            while first < run.end:
                number = first // per_page
                end = min(run.end, (number + 1) * per_page)
                page = self._parent_page(number)
                if page is not None:
                    at, to = first - number * per_page, end - number * per_page
                    kinds = bytes(page.kinds[at:to])
                    hashes = bytes(page.hashes[at * HASH_BYTES : to * HASH_BYTES])
                    yield Piece([ClusterRun(first, end - first, run.kind)], Expected(first, kinds, hashes))
                elif run.kind is ExtentKind.DATA:
                    nothing = Expected(first, bytes(end - first), bytes((end - first) * HASH_BYTES))
                    yield Piece([ClusterRun(first, end - first, run.kind)], nothing)
                first = end

    def _parent_page(self, number: int) -> ChainPage | None:
        """Pieces come in guest order: the last page is asked for again and again."""
        assert self._parent is not None
        if self._page is None or self._page[0] != number:
            self._page = number, self._parent.page(number)
        return self._page[1]

    def _check(self) -> None:
        if self._to.cancel.is_set():
            raise Interrupted()

    # -- worker threads ---------------------------------------------------------------------------

    def _read(self, piece: Piece) -> list[Cell]:
        if self._failed.is_set() or self._to.cancel.is_set():
            raise Interrupted()
        size, end = self._geometry.cluster_size, self._geometry.size
        data = [run for run in piece.runs if run.kind is ExtentKind.DATA]
        wanted = [(run.first * size, min(run.count * size, end - run.first * size)) for run in data]
        block, at = self._filled(wanted), 0
        cells: list[Cell] = []
        for run in piece.runs:
            if run.kind is ExtentKind.ZERO:
                cells += _zeroes(run, piece.expected)
            else:
                cells += self._data(run, block, at, piece.expected)
                at += run.count * size
        return cells

    def _filled(self, wanted: Sequence[tuple[int, int]]) -> bytearray:
        """These stretches, one behind the other; the last cluster of a disk padded with zeroes.

        Each thread reads into the same memory again and again: new memory costs more than to read into it.
        """
        length = sum(each for _, each in wanted)
        room = -(-length // self._geometry.cluster_size) * self._geometry.cluster_size
        buffer: bytearray = getattr(self._local, "buffer", bytearray())
        if len(buffer) < room:
            buffer = self._local.buffer = bytearray(room)
        if wanted:
            self._reader().pread_into(buffer, wanted)
            buffer[length:room] = bytes(room - length)
        return buffer

    def _data(self, run: ClusterRun, block: bytearray, start: int, expected: Expected | None) -> Iterator[Cell]:
        """Of what lies in `block` from `start` on."""
        size, hasher = self._geometry.cluster_size, self._to.hasher
        # a view does where all of it is stored before the next is read
        keep = memoryview if expected is None else bytes
        view = memoryview(block)
        for cluster, at in enumerate(range(start, start + run.count * size, size), run.first):
            # not by comparing views, which takes some fifty times as long
            if block.startswith(self._zero, at):
                if self._must_say_zero(cluster, expected):
                    yield Cell(cluster, 1)
                continue
            data = view[at : at + size]
            digest = hasher.hash(data)
            if expected is None or not expected.is_data(cluster) or expected.hash(cluster) != digest:
                yield Cell(cluster, 1, digest, keep(data))
        self._to.progress.advance(run.count * size)

    def _must_say_zero(self, cluster: int, expected: Expected | None) -> bool:
        if expected is not None:
            return expected.is_data(cluster)
        return self._disk.mode is not ReadMode.FULL

    def _reader(self) -> CaptureReader:
        reader: CaptureReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = self._disk.open()
            self._readers.append(reader)
        return reader

    def _read_and_put(self, piece: Piece) -> Stored:
        return self._put(Pack(self._read(piece)))

    def _put(self, pack: Pack) -> Stored:
        if self._failed.is_set():
            raise Interrupted()
        cells = [cell for cell in pack.cells if cell.hash]
        if not cells:
            return Stored(pack.cells, None, 0)
        digest = segment_digest([cell.hash for cell in cells])

        def store() -> SegmentRow:
            lengths, body = self._codec().compress([cell.data for cell in cells])
            row = SegmentRow(digest=digest, claim=self._to.claim, stored=len(body), lengths=lengths)
            self._to.store.put(row.name, body)
            return row

        row, new = self._to.dedupe.stored_once(digest, store, self._is_there)
        sent = row.stored if new else 0
        self._to.progress.advance(0, sent)
        # what waits for its turn to go into the map must not hold the data
        kept = [Cell(cell.first, cell.count, cell.hash) for cell in pack.cells]
        return Stored(kept, row, sent)

    def _is_there(self, row: SegmentRow) -> bool:
        try:
            return self._to.store.head(row.name).size == row.stored
        except ObjectMissing:
            return False

    def _codec(self) -> Codec:
        codec: Codec | None = getattr(self._local, "codec", None)
        if codec is None:
            codec = self._local.codec = Codec(self._to.compression_level)
        return codec


def _stretches(cells: Iterable[Cell]) -> Iterator[tuple[int, int, bytes]]:
    """Neighbouring cells of one kind together: first cluster, number of clusters, their hashes (none for zeroes)."""
    first = count = 0
    hashes: list[bytes] = []
    for cell in cells:
        if count and (cell.first != first + count or bool(cell.hash) != bool(hashes)):
            yield first, count, b"".join(hashes)
            count, hashes = 0, []
        first = first if count else cell.first
        count += cell.count
        hashes += [cell.hash] if cell.hash else []
    if count:
        yield first, count, b"".join(hashes)


def _zeroes(run: ClusterRun, expected: Expected | None) -> Iterator[Cell]:
    """Where the parent is known, only clusters in which it has data have to be said to be zero."""
    if expected is None:
        yield Cell(run.first, run.count)
        return
    first = None
    for cluster in range(run.first, run.end):
        if expected.is_data(cluster):
            first = cluster if first is None else first
        elif first is not None:
            yield Cell(first, cluster - first)
            first = None
    if first is not None:
        yield Cell(first, run.end - first)


class Packer:
    """Gathers cells into packs that are full, or nearly nothing but zeroes."""

    def __init__(self, clusters_per_segment: int) -> None:
        self._limit = clusters_per_segment
        self._pack = Pack()

    def add(self, cells: Iterable[Cell]) -> Iterator[Pack]:
        for cell in cells:
            if (cell.hash and self._pack.clusters == self._limit) or len(self._pack.cells) == _CELLS_MAX:
                yield from self.rest()
            self._pack.cells.append(cell)
            self._pack.clusters += bool(cell.hash)

    def rest(self) -> Iterator[Pack]:
        if self._pack.cells:
            pack, self._pack = self._pack, Pack()
            yield pack


def needs_parent_map(mode: ReadMode, reason: Reason | None) -> bool:
    """Whether storing a disk read this way looks into the parent's chain."""
    return mode is ReadMode.COMPARE or (mode is ReadMode.DELTA and reason is not None)
