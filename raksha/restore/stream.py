"""A disk as one qcow2 image that stands alone, read from its first byte to its last: for whoever takes a stream.

The chain is flattened by its maps alone; segments are fetched once, ahead of the reader, and verified; none is
compressed anew. No file is made but the image's tables, in the spool.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from msgspec import Struct

from raksha.restore.context import Context
from raksha.restore.disk import losing
from raksha.restore.segments import cluster_hashes, get_segment
from raksha.restore.source import DiskSource
from raksha.vault.chain import Chain, consolidate
from raksha.vault.image import read_image
from raksha.vault.map import MapBuilder
from raksha.vault.segment import SegmentRow


class ImageStream(Struct, frozen=True):
    """To be read once."""

    #: bytes of the image
    size: int
    content: Iterator[bytes]


@contextmanager
def flattened(source: DiskSource, context: Context) -> Iterator[ImageStream]:
    """Raises `DiskLost`, `ChainIncompatible`, `Interrupted`, and what the store raises; so does the content."""
    hasher = source.hashers[-1]
    with losing(source):
        chain = Chain(source.readers)
    with (
        MapBuilder(chain.geometry, source.readers[-1].key_id, context.spool_dir) as builder,
        TemporaryFile(dir=context.spool_dir, prefix="image-") as spool,
    ):
        with losing(source):
            consolidate(chain, builder)
        reader = builder.seal()

        def fetch(row: SegmentRow) -> bytes:
            context.check()
            body = get_segment(source.store, row)
            cluster_hashes(body, row, hasher, chain.geometry.cluster_size)
            context.progress.advance(len(body), len(body))
            return body

        def content(pieces: Iterator[bytes]) -> Iterator[bytes]:
            with losing(source):
                yield from pieces

        context.progress.begin(f"{source.vm}:{source.disk}", sum(reader.stored_sizes()))
        try:
            size, pieces = read_image(reader, fetch, spool, context.workers)
            yield ImageStream(size, content(pieces))
        finally:
            context.progress.end()
