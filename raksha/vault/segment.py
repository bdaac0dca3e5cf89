"""Segments: how clusters of a disk become one stored object, and one cluster comes back out of it.

A segment is a row of zstd frames, one per cluster, padded with zeroes to `ALIGN` bytes. It has no header: the map
holds the length of every frame. Its name is made of its digest and of the claim (task and attempt) that wrote it, so
each name has one writer and is never written twice.

Promised: `decode` returns the plaintext that was hashed, or raises `ObjectCorrupt`; it never allocates more than one
cluster for a frame, whatever the frame says of itself.

Not promised: secrecy. The keyed hashes do not tell what a cluster holds to somebody without the key, the frames do.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Sequence
from itertools import accumulate

import blake3
import zstandard
from msgspec import Struct

from raksha.direct import Pages
from raksha.errors import ObjectCorrupt
from raksha.types import Buffer
from raksha.vault.store import SEGMENTS

#: bytes of a cluster's keyed hash
HASH_BYTES = 16
#: bytes of a segment's digest
DIGEST_BYTES = 32
#: bytes of a hash key
KEY_BYTES = 32
#: a segment is padded to a multiple of this: the qcow2 tables count compressed data in sectors
ALIGN = 512
#: the largest window a frame may ask for: the largest cluster (2 MiB), and the largest page of a map (6 MiB)
MAX_WINDOW = 1 << 23

#: what a claim may look like: it is part of an object name
CLAIM = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}\Z")


def padded(length: int) -> int:
    """`length` rounded up to a multiple of `ALIGN`."""
    return -(-length // ALIGN) * ALIGN


def frame_limit(cluster_size: int) -> int:
    """The most bytes that the frame of one cluster may take: zstd's own bound, and room for its checksum."""
    return cluster_size + (cluster_size >> 8) + 128


def object_name(digest: bytes, claim: str) -> str:
    """`container/key` of a segment, or of another part of a `Backup`. Raises `ValueError` for a malformed claim."""
    if len(digest) != DIGEST_BYTES or not CLAIM.match(claim):
        raise ValueError(f"no object name: digest of {len(digest)} bytes, claim {claim!r}")
    text = digest.hex()
    return f"{SEGMENTS}/{text[:2]}/{text}-{claim}"


class ClusterHasher:
    """BLAKE3 keyed with the project's key, `HASH_BYTES` of output. May be used by any thread."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a hash key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def hash(self, data: Buffer) -> bytes:
        return blake3.blake3(data, key=self._key).digest(length=HASH_BYTES)


def segment_digest(hashes: Sequence[bytes]) -> bytes:
    """The digest that names a segment: BLAKE3 over the hashes of its clusters, in their order."""
    return blake3.blake3(b"".join(hashes)).digest()


class Codec:
    """Compresses the clusters of one segment. One per thread: a zstd context has no lock."""

    def __init__(self, level: int = 1) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._body = Pages()

    def compress(self, clusters: Sequence[Buffer]) -> tuple[tuple[int, ...], memoryview]:
        """The length of each cluster's frame, and the body of the segment, padded. Raises `ValueError` for none.

        The next call overwrites the body. It begins at a page: a store can hand it to a disk as it is.
        """
        # one call for all: between two calls this thread would have to wait for the interpreter's lock
        found = self._zstd.multi_compress_to_buffer(list(clusters), threads=1)
        frames = [_view(found[index]) for index in range(len(found))]
        lengths = tuple(map(len, frames))
        return lengths, self._body.gather(frames, padded(sum(lengths)))


class _Decompressors(threading.local):
    """A zstd context per thread."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)


_decompressors = _Decompressors()


def decompress(frame: Buffer, size: int, name: str) -> bytes:
    """The `size` bytes held by exactly one zstd frame. Raises `ObjectCorrupt` (of the object `name`).

    The size that the frame declares is compared before anything is allocated.
    """
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != size:
            raise ObjectCorrupt(name=name, detail=f"a frame declares {declared} bytes instead of {size}")
        data = _decompressors.zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ObjectCorrupt(name=name, detail=f"a frame cannot be decompressed ({error})") from error
    if len(data) != size:
        raise ObjectCorrupt(name=name, detail=f"a frame holds {len(data)} bytes instead of {size}")
    return data


def decode(
    frame: Buffer, expected_hash: Buffer, hasher: ClusterHasher, cluster_size: int, *, name: str = "(segment)"
) -> bytes:
    """The plaintext of one cluster, verified. `name` is the segment's, for the error. Raises `ObjectCorrupt`."""
    data = decompress(frame, cluster_size, name)
    _verify(data, expected_hash, hasher, cluster_size, name)
    return data


def decode_all(
    frames: Sequence[Buffer], expected: Sequence[Buffer], hashers: Sequence[ClusterHasher], cluster_size: int, name: str
) -> list[memoryview]:
    """The plaintexts of several frames of one segment, verified: each as `decode` has it, and much faster together.

    `expected` and `hashers`: hash and hasher of each frame. Bytes that follow a frame do no harm and are not noticed.
    Raises `ObjectCorrupt`.
    """
    try:
        # a frame that says something else of itself could make zstd allocate more
        sizes = [zstandard.frame_content_size(frame) for frame in frames]
        if sizes.count(cluster_size) != len(sizes):
            raise zstandard.ZstdError("a frame declares another size")
        # one call for all: between two calls this thread would have to wait for the interpreter's lock
        found = _decompressors.zstd.multi_decompress_to_buffer(
            list(frames), decompressed_sizes=struct.pack(f"={len(sizes)}Q", *sizes), threads=1
        )
    except zstandard.ZstdError as error:
        for frame, known, hasher in zip(frames, expected, hashers, strict=True):
            decode(frame, known, hasher, cluster_size, name=name)  # says which frame it is, and what is wrong with it
        raise ObjectCorrupt(name=name, detail=f"its frames cannot be decompressed ({error})") from error
    data = [_view(found[index]) for index in range(len(found))]
    for plain, known, hasher in zip(data, expected, hashers, strict=True):
        _verify(plain, known, hasher, cluster_size, name)
    return data


def _view(segment: zstandard.BufferSegment) -> memoryview:
    """Its bytes, which live as long as the view."""
    return memoryview(segment)  # type: ignore[arg-type]  # typeshed's notion of a buffer needs Python 3.12


def _verify(data: Buffer, expected: Buffer, hasher: ClusterHasher, cluster_size: int, name: str) -> None:
    if len(data) != cluster_size or hasher.hash(data) != bytes(expected):
        raise ObjectCorrupt(name=name, detail="a cluster does not have the hash that the map records")


class SegmentRow(Struct, frozen=True):
    """One segment as a map knows it."""

    #: BLAKE3 over the hashes of its clusters
    digest: bytes
    #: which task and attempt wrote it
    claim: str
    #: bytes, padding included: the size of the object
    stored: int
    #: bytes of each frame, in order
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """`container/key`."""
        return object_name(self.digest, self.claim)

    def offset(self, index: int) -> int:
        """Where the frame of cluster `index` begins, in bytes. Raises `ObjectCorrupt` if there is none."""
        self._check(index)
        return sum(self.lengths[:index])

    def offsets(self) -> list[int]:
        """Where each frame begins, and as a last item where the padding begins."""
        return list(accumulate(self.lengths, initial=0))

    def frame(self, body: Buffer, index: int) -> memoryview:
        """The frame of cluster `index` within the whole segment. Raises `ObjectCorrupt`."""
        start = self.offset(index)
        end = start + self.lengths[index]
        if len(body) < end:
            raise ObjectCorrupt(name=self.name, detail=f"it has {len(body)} bytes and should have {self.stored}")
        return memoryview(body)[start:end]

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.lengths):
            raise ObjectCorrupt(name=self.name, detail=f"it has {len(self.lengths)} clusters, number {index} is wanted")
