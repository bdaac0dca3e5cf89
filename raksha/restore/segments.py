"""Whole segments, verified without a map: the digest in the name is made of the hashes of all clusters."""

from __future__ import annotations

from itertools import pairwise

from raksha.errors import ObjectCorrupt, ObjectTruncated
from raksha.vault.segment import ClusterHasher, SegmentRow, decompress, segment_digest
from raksha.vault.store import Store


def get_segment(store: Store, row: SegmentRow) -> bytes:
    """All bytes of a segment. Raises `ObjectMissing`, `ObjectTruncated`, `ObjectCorrupt`."""
    body = store.get(row.name)
    if len(body) < row.stored:
        raise ObjectTruncated(name=row.name, wanted=row.stored, got=len(body))
    if len(body) > row.stored:
        raise ObjectCorrupt(name=row.name, detail=f"it has {len(body)} bytes and should have {row.stored}")
    return body


def cluster_hashes(body: bytes, row: SegmentRow, hasher: ClusterHasher, cluster_size: int) -> list[bytes]:
    """The hash of every cluster, proven by the segment's digest. Raises `ObjectCorrupt`."""
    view, name = memoryview(body), row.name
    hashes = [hasher.hash(decompress(view[start:end], cluster_size, name)) for start, end in pairwise(row.offsets())]
    if segment_digest(hashes) != row.digest:
        raise ObjectCorrupt(name=name, detail="its clusters do not have the digest that names it")
    return hashes
